"""Nights as processes that can be killed: as somebody types them, or without paying for Python's imports each time."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from flows.safety.locks import read_holder
from tasks.paths import STAGES, Workspace
from tests.flows.tiny import environment

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["flows.night", "tests.flows.tiny"])
_PATIENCE_S = 400.0


def until(happens: Callable[[], bool]) -> None:
    """Wait for something seen from outside."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.05)


def type_night(root: Path, **changes: str) -> subprocess.Popen[str]:
    """``gleaner night`` as somebody types it in ``root``; its stdout is everything it says."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "night"],
        cwd=root,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """Shells start what runs in the background with SIGINT ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _night(root: Path, api_url: str, stages: Sequence[str]) -> None:
    os.setsid()
    log = os.open(log_of(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import night as module

    vars(module)["STAGES"] = tuple(stages)
    with temporary_settings({PREFECT_API_URL: api_url}):  # read when the server of these processes imported Prefect
        module.night(root)


def log_of(root: Path) -> Path:
    """What the nights of a campaign print."""
    return root.with_name(f"{root.name}.log")


def start_night(root: Path, api_url: str, stages: Sequence[str] = STAGES) -> multiprocessing.process.BaseProcess:
    """A night of its own process; ``stages`` leaves out what is known to be done."""
    night = _SERVER.Process(target=_night, args=(root, api_url, stages), daemon=True)  # a failed test must not wait
    night.start()
    return night


def kill_when(night: multiprocessing.process.BaseProcess, happened: Callable[[], bool], root: Path) -> None:
    """SIGKILL a night at a moment seen from outside, and see that nothing it started lives on.

    A moment that has passed already, because the last night died a little late, is the first of this night's own.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while not (happened() and _is_under_way(night, root)):
        assert night.exitcode is None, f"it ended before it was killed: {log_of(root).read_text()[-3000:]}"
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.002)
    night.kill()
    night.join()
    assert night.exitcode == -9, "the night was over before it could be killed"
    while living := working_in(root):
        assert time.monotonic() < deadline_s, f"outlived its night: {living}"
        time.sleep(0.02)


def _is_under_way(night: multiprocessing.process.BaseProcess, root: Path) -> bool:
    """Whether it holds the campaign, and has said which of Prefect's flow runs it is."""
    holder = read_holder(Workspace(root).lock.with_name("lock.holder"))
    return holder is not None and holder.identity.pid == night.pid and bool(holder.notes)


def working_in(root: Path) -> list[str]:
    """Commands of the processes whose folder is ``root``."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == root:
                found.append(" ".join(process.cmdline()))
    return found
