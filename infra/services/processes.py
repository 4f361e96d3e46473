"""Server processes that outlive the command that started them, and are found again by a later one."""

import os
import pwd
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from flows.runtime.subprocess import set_pdeathsig
from flows.workspace.lock import ProcessIdentity
from infra.services.service import LocalServiceError, NotReady, Service
from tasks.storage import files

_POLL_S = 0.2
_KILL_TIMEOUT_S = 10.0
_INHERITED_ENV = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


def start(service: Service, log: Path, *, die_with_parent: bool = False) -> "subprocess.Popen[bytes]":
    """Start a service in a session of its own.

    Args:
        service: what to start.
        log: file that its output is appended to.
        die_with_parent: kill it when this process ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    inherited = {name: os.environ[name] for name in _INHERITED_ENV if name in os.environ}
    with log.open("ab") as output:
        return subprocess.Popen(
            service.command,
            cwd=service.folder,
            env={**inherited, **service.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=set_pdeathsig(signal.SIGKILL) if die_with_parent else None,
            user=service.user,
            group=pwd.getpwnam(service.user).pw_gid if service.user else None,
            extra_groups=[] if service.user else None,
        )


def wait_until_ready(service: Service, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the service's readiness check succeeds.

    Raises:
        LocalServiceError: it ended, or does not work in time; names its log. The process is gone then.
    """
    deadline_s = time.monotonic() + service.start_timeout_s
    last_error = "no answer"
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            return service.check_ready()
        except NotReady as error:
            last_error = str(error)
            time.sleep(_POLL_S)
    if process.poll() is None:
        problem = f"the server is not ready after {service.start_timeout_s:.0f} s ({last_error}), expected it to be"
    else:
        problem = f"the server ended with code {process.returncode}, expected it to keep running"
    kill(process)
    raise LocalServiceError(service.name, problem, f"Its log: {log}.")


def write_pid_file(pid_file: Path, pid: int) -> None:
    """Write the identity of a started process, for a later command."""
    files.write_bytes(pid_file, f"{ProcessIdentity.of(pid)}\n".encode())


def running_pid(pid_file: Path) -> int | None:
    """Return the process id in ``pid_file`` if that server still runs; never of another process with the same id."""
    identity = _read_pid(pid_file)
    return None if identity is None or identity.is_dead else identity.pid


def stop(pid_file: Path, stop_signal: signal.Signals, timeout_s: float) -> bool:
    """Stop the server in ``pid_file`` and remove the file; return whether it ended by itself within ``timeout_s``.

    What is left of its session is killed: a server that died may have workers that still hold its port.
    """
    identity = _read_pid(pid_file)
    has_exited = True
    if identity is not None:
        if not identity.is_dead:
            os.kill(identity.pid, stop_signal)
            has_exited = _has_exited(identity, timeout_s)
        _kill_session(identity)
    pid_file.unlink(missing_ok=True)
    return has_exited


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a server that this process started, with all its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_pid(pid_file: Path) -> ProcessIdentity | None:
    return ProcessIdentity.parse(pid_file.read_text().strip()) if pid_file.is_file() else None


def _has_exited(process: ProcessIdentity, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not process.is_dead:
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _kill_session(leader: ProcessIdentity) -> None:
    """Kill all processes of a server's session. Linux does not reuse an id that still names a session."""
    if not leader.is_same_boot or (leader.is_dead and ProcessIdentity.of(leader.pid)):
        return
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    while (members := _session_pids(leader.pid)) and time.monotonic() < deadline_s:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)  # until they are gone, their ports are taken


def _session_pids(leader_pid: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader_pid and ProcessIdentity.of(pid):
                members.append(pid)
    return members
