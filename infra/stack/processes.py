"""Server processes that outlive the command that started them, and are found again by a later one."""

import os
import pwd
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from flows.safety.identity import ProcessIdentity
from flows.safety.process import end_with_parent
from infra.stack.service import NotReady, Service, StackError
from tasks import files

_POLL_S = 0.2
_KILL_PATIENCE_S = 10.0
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


def start(service: Service, log: Path, *, with_us: bool = False) -> "subprocess.Popen[bytes]":
    """Start a service in a session of its own, its words appended to ``log``; ``with_us``: it dies when we do."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with log.open("ab") as output:
        return subprocess.Popen(
            service.command,
            cwd=service.folder,
            env={**kept, **service.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGKILL) if with_us else None,
            user=service.user,
            group=pwd.getpwnam(service.user).pw_gid if service.user else None,
            extra_groups=[] if service.user else None,
        )


def wait_until_ready(service: Service, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for the service's first real work.

    Raises:
        StackError: it ended, or does not work in time; names its log. The process is gone then.
    """
    deadline_s = time.monotonic() + service.start_patience_s
    said = "nothing yet"
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            return service.ready()
        except NotReady as error:
            said = str(error)
            time.sleep(_POLL_S)
    if process.poll() is None:
        problem = f"it does not work after {service.start_patience_s:.0f} s ({said}), expected it to"
    else:
        problem = f"the server ended with code {process.returncode}, expected it to stay"
    kill(process)
    raise StackError(service.name, problem, f"Its log: {log}.")


def remember(record: Path, pid: int) -> None:
    """Note who was started, for a later command."""
    files.write_bytes(record, f"{ProcessIdentity.of(pid)}\n".encode())


def running(record: Path) -> int | None:
    """Process id of the server noted in ``record``, if it still runs; never that of a stranger who got its id."""
    noted = _noted(record)
    return None if noted is None or noted.is_dead else noted.pid


def end(record: Path, number: signal.Signals, patience_s: float) -> bool:
    """Ask a noted server to stop, and forget it; whether it went by itself within ``patience_s``.

    What it leaves behind is killed: a server that died may have workers that still hold its port.
    """
    noted = _noted(record)
    went = True
    if noted is not None:
        if not noted.is_dead:
            os.kill(noted.pid, number)
            went = _gone(noted, patience_s)
        _kill_session(noted)
    record.unlink(missing_ok=True)
    return went


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server we started ourselves, and all it started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _noted(record: Path) -> ProcessIdentity | None:
    return ProcessIdentity.parse(record.read_text().strip()) if record.is_file() else None


def _gone(process: ProcessIdentity, patience_s: float) -> bool:
    deadline_s = time.monotonic() + patience_s
    while not process.is_dead:
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _kill_session(leader: ProcessIdentity) -> None:
    """Kill all of a server's session. Linux gives no id away that still names a session, so they are its own."""
    if not leader.same_boot or (leader.is_dead and ProcessIdentity.of(leader.pid)):
        return
    deadline_s = time.monotonic() + _KILL_PATIENCE_S
    while (members := _session(leader.pid)) and time.monotonic() < deadline_s:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)  # until they are gone, their ports are taken


def _session(leader_pid: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader_pid and ProcessIdentity.of(pid):
                members.append(pid)
    return members
