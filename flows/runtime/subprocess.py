"""A child process that streams its lines to us, and that never outlives us."""

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

_PR_SET_PDEATHSIG = 1
GRACE_S = 25.0
"""Enough for a training to finish its iteration and write its state; Prefect kills what takes 30 s to be cancelled."""
_POLL_INTERVAL_S = 0.5


class ProcessTimeout(Exception):
    """A child ran into its time limit and was ended."""


def run_streaming(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    limit_s: float = inf,
    grace_s: float = GRACE_S,
) -> int:
    """Run ``command`` in a process group of its own, hand over each line it prints, return its exit code.

    Whatever interrupts us (Ctrl-C, SIGTERM, a cancelled run, the time limit), the whole group gets SIGTERM, and what
    is left of it after ``grace_s`` seconds SIGKILL. If we are killed outright, Linux ends the child.

    Raises:
        ProcessTimeout: it was still running after ``limit_s`` seconds.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        bufsize=1,
        start_new_session=True,
        preexec_fn=set_pdeathsig(signal.SIGTERM),
    )
    output = _OutputReader(process)
    try:
        for line in output.lines(limit_s):
            on_line(line)
        return process.wait()
    except BaseException:  # Prefect interrupts with exceptions that are not an Exception
        _terminate_group(process, output, grace_s)
        raise


class _OutputReader:
    """What a child prints.

    A second thread does the blocking read: some interruptions (a cancelled run, where signals are taken or outside
    the main thread) reach Python only between two instructions, never inside of one.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._queue: Queue[str | None] = Queue()
        self._reader = Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def lines(self, limit_s: float) -> Iterator[str]:
        """Lines as they come, until everybody who could print has ended."""
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
        """Wait until the last process that holds the pipe is gone, or the time is up."""
        self._reader.join(timeout_s)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._queue.put(line.rstrip())
        self._queue.put(None)


def set_pdeathsig(signal_number: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` that asks Linux to signal the child when the thread that started it dies."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded here: after the fork only the call itself is safe

    def prctl() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal_number)

    return prctl


@contextmanager
def sigterm_as_systemexit() -> Iterator[None]:
    """Within the block, in the main thread, SIGTERM raises ``SystemExit``: children can be waited for."""

    def raise_system_exit(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; a second must not cut the clean-up short
        raise SystemExit(128 + number)

    previous_handler = signal.signal(signal.SIGTERM, raise_system_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _terminate_group(process: subprocess.Popen[str], output: _OutputReader, grace_s: float) -> None:
    """End the child with all it started.

    DVC goes at once, the training below it needs time for its state: the end of the group is the end of its output,
    not the end of its leader.
    """
    deadline_s = time.monotonic() + grace_s
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    output.join(grace_s)
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(deadline_s - time.monotonic(), 0))
    with suppress(ProcessLookupError):  # the leader may be gone and a member of its group still there
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
