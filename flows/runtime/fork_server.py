"""Run a Python program many times in forks of one process that has imported it.

Importing DVC takes about a second of a core, several times as long as what a stage asks it to do, and a round starts it
a dozen times. A server imports it once and forks for each command, which then behaves like ``python -m program``: its
own session, folder, environment and output, and Linux ends it when the server ends, which ends with its own parent.

Where a server cannot be used, ``start_forked`` starts the program as any other.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from flows.runtime.subprocess import ChildProcess, set_pdeathsig, start

_MAX_REQUEST_BYTES = 1 << 17
_READ_AT_START = ("PYTHON", "LD_", "MALLOC_")
"""Prefixes of variables that an interpreter reads when it starts: a server fits only commands with the same ones."""


class _ServerGone(Exception):
    """The server did not start, or has ended."""


class ForkedProcess:
    """A command in a fork of the server, used like ``subprocess.Popen``."""

    def __init__(self, pid: int, stdout: IO[str], replies: socket.socket, server: "_ForkServer") -> None:
        """Take its process id, the pipe of its output, and the socket on which its server tells its end."""
        self.pid, self.stdout = pid, stdout
        self._replies = replies
        self._server: _ForkServer | None = server  # lives on at least as long as the command
        self._code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it was waited for."""
        return self._code is not None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code; minus the signal's number where a signal ended it.

        Raises:
            subprocess.TimeoutExpired: it was still running after ``timeout`` seconds.
        """
        if self._code is None:
            self._replies.settimeout(timeout)
            try:
                reply = self._replies.recv(_MAX_REQUEST_BYTES)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0) from None
            except ConnectionError:
                reply = b""
            finally:
                self._replies.settimeout(None)
            self._code = int(reply) if reply else -signal.SIGKILL  # no reply: the server was killed, and it with it
            self._server = None
        return self._code


class _ForkServer:
    """The client's end of a server. One thread uses it, for one command at a time."""

    def __init__(self, program: str, modules: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a server that has imported ``modules`` of ``program``."""
        self.thread, self._env = _current_thread(), _start_env(env)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "flows.runtime.fork_server", str(theirs.fileno()), program, *modules]
        with theirs:
            process = start(
                command,
                cwd=Path("/"),
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._last: ForkedProcess | None = None
        self.close = weakref.finalize(self, _end, process, self._requests, os.getpid())

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether it may serve this thread's command with this environment."""
        is_idle = self._last is None or self._last.has_ended
        return is_idle and self.close.alive and self.thread == _current_thread() and self._env == _start_env(env)

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], pdeathsig: int) -> ForkedProcess:
        """Start one command.

        Raises:
            _ServerGone: the server has ended; nothing was started.
        """
        request = {"arguments": [*arguments], "cwd": str(cwd.resolve()), "env": dict(env), "pdeathsig": pdeathsig}
        reader, writer = os.pipe()
        stdout = os.fdopen(reader, encoding="utf-8", errors="replace")
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [writer])
            reply = self._requests.recv(_MAX_REQUEST_BYTES)
        except OSError:  # it ended, or the request is too large
            reply = b""
        finally:
            os.close(writer)
        if not reply:
            stdout.close()
            self.close()
            raise _ServerGone
        self._last = ForkedProcess(int(reply), stdout, self._requests, self)
        return self._last


_servers = threading.local()


def start_forked(
    program: str,
    arguments: Sequence[str],
    *,
    modules: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    parent_death_signal: signal.Signals,
) -> ChildProcess:
    """Start ``python -m program`` with ``arguments`` in a fork of this thread's server, without waiting for it.

    Args:
        program: a package or module.
        arguments: its command line.
        modules: what the server imports beforehand; none of them may start a thread.
        cwd: working directory.
        env: the whole environment.
        parent_death_signal: sent to the command when the server, or the thread that called this function first, ends.
    """
    server: _ForkServer | None = getattr(_servers, program, None)
    for _ in range(2):  # the second time with a new server
        if server is None or not server.fits(env):
            server = _ForkServer(program, modules, env)
            setattr(_servers, program, server)
        with suppress(_ServerGone):
            return server.start(arguments, cwd, env, parent_death_signal)
    command = [sys.executable, "-m", program, *arguments]
    return start(command, cwd=cwd, env=env, parent_death_signal=parent_death_signal)


def _start_env(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START)}


def _current_thread() -> tuple[int, int]:
    """Return what tells this thread from others, and from its own in a fork of this process."""
    return os.getpid(), threading.get_ident()


def _end(process: "subprocess.Popen[str]", requests: socket.socket, pid: int) -> None:
    """Let the server see that nobody asks any more, and wait for it."""
    requests.close()
    if os.getpid() == pid:  # not in a fork, where it is no child
        process.kill()
        process.wait()


# The server


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; return it in the process that is to be the command."""
    while True:
        content, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 1)
        if not content:
            os._exit(0)
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            request: dict[str, Any] = json.loads(content)
            os.setsid()
            set_pdeathsig(signal.Signals(request["pdeathsig"]))()
            for number in (1, 2):
                os.dup2(descriptors[0], number)
            for descriptor in (*descriptors, ready, started):
                os.close(descriptor)
            requests.close()
            return request
        for descriptor in (*descriptors, started):
            os.close(descriptor)
        os.read(ready, 1)  # the end of the pipe: it has its session, or has ended
        os.close(ready)
        with suppress(OSError):
            requests.send(str(child).encode())
            requests.send(str(_wait_for(child)).encode())
            requests.recv(1, socket.MSG_PEEK)  # until the next request, nobody else gets its number
        os.waitpid(child, 0)


def _wait_for(child: int) -> int:
    """Return the exit code of a child once it has ended, and leave it to be waited for."""
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return int(ended.si_status) if ended.si_code == os.CLD_EXITED else -int(ended.si_status)


def _become(request: Mapping[str, Any], program: str) -> None:
    """Be the command as ``python -m program`` would."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if not sys.flags.safe_path:
        sys.path[0] = request["cwd"]
    sys.argv = [program, *request["arguments"]]


def _main() -> None:
    descriptor, program, *modules = sys.argv[1:]
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # what is imported stays: no fork looks through it, or copies its pages
    gc.enable()
    _become(_serve(socket.socket(fileno=int(descriptor))), program)
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
