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
from typing import IO

import psutil

from flows.workspace.lock import read_owner
from tasks.data.paths import STAGES, Workspace
from tests.flows.small_campaign import subprocess_env

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["flows.nightly", "tests.flows.small_campaign"])
_TIMEOUT_S = 400.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something seen from outside."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.05)


def start_cli_run(root: Path, output: int | IO[str] = subprocess.PIPE, **changes: str) -> subprocess.Popen[str]:
    """``gleaner run`` as somebody types it in ``root``; ``output`` gets everything it says."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=root,
        env=subprocess_env(**changes),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_restore_sigint,
    )


def _restore_sigint() -> None:
    """Shells start what runs in the background with SIGINT ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(root: Path, api_url: str, stages: Sequence[str]) -> None:
    os.setsid()
    log = os.open(log_path(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import nightly as module

    vars(module)["STAGES"] = tuple(stages)
    with temporary_settings({PREFECT_API_URL: api_url}):  # read when the server of these processes imported Prefect
        module.nightly(root)


def log_path(root: Path) -> Path:
    """What the nights of a campaign print."""
    return root.with_name(f"{root.name}.log")


def start_run(root: Path, api_url: str, stages: Sequence[str] = STAGES) -> multiprocessing.process.BaseProcess:
    """A night of its own process; ``stages`` leaves out what is known to be done."""
    process = _FORKSERVER.Process(target=_run, args=(root, api_url, stages), daemon=True)  # a failed test must not wait
    process.start()
    return process


def kill_when(process: multiprocessing.process.BaseProcess, condition: Callable[[], bool], root: Path) -> None:
    """SIGKILL a night at a moment seen from outside, and see that nothing it started lives on.

    A moment that has passed already, because the last night died a little late, is the first of this night's own.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not (condition() and _is_running(process, root)):
        assert process.exitcode is None, f"it ended before it was killed: {log_path(root).read_text()[-3000:]}"
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9, "the night was over before it could be killed"
    while alive := process_commands(root):
        assert time.monotonic() < deadline_s, f"outlived its night: {alive}"
        time.sleep(0.02)


def _is_running(process: multiprocessing.process.BaseProcess, root: Path) -> bool:
    """Whether it holds the campaign, and has said which of Prefect's flow runs it is."""
    holder = read_owner(Workspace(root).lock.with_name("lock.owner"))
    return holder is not None and holder.identity.pid == process.pid and bool(holder.notes)


def stage_processes(root: Path) -> list[psutil.Process]:
    """Stages that run in ``root``."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if "tasks" in process.cmdline() and Path(process.cwd()) == root:
                found.append(process)
    return found


def process_commands(root: Path) -> list[str]:
    """Commands of the processes whose folder is ``root``."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == root:
                found.append(" ".join(process.cmdline()))
    return found
