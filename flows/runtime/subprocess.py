"""Start child processes that stream or return their output and never outlive their parent.

Every child is started by ``start``: in a session of its own, without standard input, and with a signal that Linux sends
it when the thread that started it dies. ``run_streaming`` and ``run_captured`` wait for it. ``fork_server`` starts
children that need not import their program; ``stream_output`` waits for those.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import FrameType
from typing import IO, Protocol

_PR_SET_PDEATHSIG = 1
GRACE_S = 25.0
"""Enough for a training to finish its iteration and write its state; Prefect kills what takes 30 s to be cancelled."""
_POLL_INTERVAL_S = 0.5


class ProcessTimeout(Exception):
    """A child exceeded its time limit and was terminated."""


class ChildProcess(Protocol):
    """What waiting for a child needs of ``subprocess.Popen``."""

    @property
    def pid(self) -> int:
        """Process id, which is that of its group and session too."""

    @property
    def stdout(self) -> IO[str] | None:
        """The pipe of its output."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code."""


def start(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.STDOUT,
    pass_fds: Sequence[int] = (),
    parent_death_signal: signal.Signals = signal.SIGKILL,
) -> "subprocess.Popen[str]":
    """Start ``command`` as the leader of a new session and process group, without waiting for it.

    Args:
        command: program and arguments.
        cwd: working directory; None: the current one.
        env: its whole environment; None: a copy of this process's.
        stdout: as ``subprocess.Popen`` takes it.
        stderr: as ``subprocess.Popen`` takes it.
        pass_fds: file descriptors the child keeps open.
        parent_death_signal: sent to the child by Linux when the thread that called this function ends.

    Raises:
        OSError: the program cannot be executed.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        text=True,
        encoding="utf-8",
        errors="replace",
        bufsize=1,
        start_new_session=True,
        preexec_fn=set_pdeathsig(parent_death_signal),
    )


def run_streaming(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    limit_s: float = inf,
    grace_s: float = GRACE_S,
) -> int:
    """Run ``command``, pass each line it prints to ``on_line`` and return its exit code.

    Whatever interrupts the caller (Ctrl-C, SIGTERM, a cancelled run, the time limit), the whole process group gets
    SIGTERM, and what is left of it after ``grace_s`` seconds SIGKILL. If the caller is killed, Linux sends SIGTERM.

    Raises:
        ProcessTimeout: it was still running after ``limit_s`` seconds.
    """
    process = start(command, cwd=cwd, env=env, parent_death_signal=signal.SIGTERM)
    return stream_output(process, on_line=on_line, limit_s=limit_s, grace_s=grace_s)


def stream_output(
    process: ChildProcess, *, on_line: Callable[[str], None], limit_s: float = inf, grace_s: float = GRACE_S
) -> int:
    """Pass each line that a child prints to ``on_line`` and return its exit code; interrupted as ``run_streaming``.

    Raises:
        ProcessTimeout: it was still running after ``limit_s`` seconds.
    """
    output = _OutputReader(process)
    try:
        for line in output.lines(limit_s):
            on_line(line)
        return process.wait()
    except BaseException:  # Prefect interrupts with exceptions that are not an Exception
        _terminate_group(process, output, grace_s)
        raise


def run_captured(
    command: Sequence[str],
    *,
    limit_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run ``command`` and return its exit code, standard output and standard error.

    Raises:
        ProcessTimeout: it was still running after ``limit_s`` seconds; its process group is killed.
        OSError: the program cannot be executed.
    """
    process = start(command, cwd=cwd, env=env, stderr=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ProcessTimeout from None
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def set_pdeathsig(signal_number: signal.Signals) -> Callable[[], None]:
    """Return a ``preexec_fn`` that asks Linux to signal the child when the thread that started it dies."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded here: after the fork only the call itself is safe

    def prctl() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal_number)

    return prctl


@contextmanager
def sigterm_as_systemexit() -> Iterator[None]:
    """Within the block, in the main thread, let SIGTERM raise ``SystemExit``, so that children can be waited for."""

    def raise_system_exit(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clean-up
        raise SystemExit(128 + number)

    previous_handler = signal.signal(signal.SIGTERM, raise_system_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


class _OutputReader:
    """Read a child's lines in a second thread.

    Some interruptions (a cancelled run, where signals are blocked or outside the main thread) reach Python only
    between two instructions, never inside a blocking read.
    """

    def __init__(self, process: ChildProcess) -> None:
        self._queue: Queue[str | None] = Queue()
        self._reader = Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def lines(self, limit_s: float) -> Iterator[str]:
        """Yield lines as they come, until every process that holds the pipe has ended.

        Raises:
            ProcessTimeout: more than ``limit_s`` seconds have passed.
        """
        deadline_s = time.monotonic() + limit_s
        while True:
            if time.monotonic() > deadline_s:
                raise ProcessTimeout
            try:
                line = self._queue.get(timeout=_POLL_INTERVAL_S)
            except Empty:
                continue
            if line is None:
                return
            yield line

    def join(self, timeout_s: float) -> None:
        """Wait until the last process that holds the pipe has ended, or the time is up."""
        self._reader.join(timeout_s)

    def _read(self, process: ChildProcess) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._queue.put(line.rstrip())
        self._queue.put(None)


def _terminate_group(process: ChildProcess, output: _OutputReader, grace_s: float) -> None:
    """End the child with all it started.

    DVC ends at once, the training below it needs time for its state: the group has ended when its output has, not when
    its leader has.
    """
    deadline_s = time.monotonic() + grace_s
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    output.join(grace_s)
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(deadline_s - time.monotonic(), 0))
    with suppress(ProcessLookupError):  # the leader may have ended before a member of its group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
