"""A child process that streams its lines to us, and that never outlives us."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

_PR_SET_PDEATHSIG = 1
_GRACE_S = 15.0
_AWAKE_EVERY_S = 0.5


def stream(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    grace_s: float = _GRACE_S,
) -> int:
    """Run ``command`` in a process group of its own, hand over each line it prints, return its exit code.

    Whatever interrupts us (Ctrl-C, SIGTERM, a task's timeout, a cancelled run), the whole group gets SIGTERM
    and, after ``grace_s`` seconds, SIGKILL. If we are killed outright, Linux ends the child.
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
        preexec_fn=end_with_parent(signal.SIGTERM),
    )
    try:
        for line in _lines(process):
            on_line(line.rstrip())
        return process.wait()
    except BaseException:  # Prefect interrupts with exceptions that are not an Exception
        _end_group(process, grace_s)
        raise


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Lines as they come.

    A second thread does the blocking read: some interruptions (a timeout or a cancelled run, where signals are
    taken or outside the main thread) reach Python only between two instructions, never inside of one.
    """
    lines: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_AWAKE_EVERY_S)
        except Empty:
            continue
        if line is None:
            return
        yield line


def end_with_parent(signal_number: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` that asks Linux to signal the child when the thread that started it dies."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded here: after the fork only the call itself is safe

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal_number)

    return ask


def _end_group(process: subprocess.Popen[str], grace_s: float) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with suppress(ProcessLookupError):  # the leader may be gone and a member of its group still there
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
