"""What becomes of a stage that is killed, out of memory, without disk space or too slow."""

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.runtime.retries import RETRY_DELAYS_S, is_transient
from flows.stage_runner import StageBusyError, StageError, StageKilledError, run_stage, stage_failure
from flows.workspace import run_lock
from flows.workspace.rounds import stage_log
from flows.workspace.run_lock import WORKSPACE_ENV, kill_orphans
from tasks.data.paths import Workspace
from tasks.runtime.errors import EXIT_INTERRUPTED, DiskFullError, GuardRailError, OutOfMemoryError, UserError
from tests.flows.small_campaign import inject_fault, subprocess_env


@pytest.fixture(scope="module")
def ready_template(
    small_campaign_template: Workspace, tmp_path_factory: pytest.TempPathFactory, prefect_test_server: None
) -> Path:
    root = tmp_path_factory.mktemp("ready") / "tiny"
    shutil.copytree(small_campaign_template.root, root)
    for stage in ("prepare", "assemble"):
        run_stage(root, stage, 0)
    return root


@pytest.fixture
def ready(ready_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Everything before train is derived; nobody waits before the next attempt."""
    shutil.copytree(ready_template, tmp_path / "tiny")
    monkeypatch.setattr(run_stage, "retry_delay_seconds", [0.0] * len(RETRY_DELAYS_S))
    return Workspace(tmp_path / "tiny")


def attempts(workspace: Workspace) -> int:
    return stage_log(workspace, 0, "train").read_text().count("train is at work")


@pytest.mark.integration
def test_a_killed_stage_is_run_again(ready: Workspace) -> None:
    inject_fault(ready, "train", "once die")
    assert not run_stage(ready.root, "train", 0).skipped
    assert attempts(ready) == 2


@pytest.mark.integration
def test_a_stage_that_is_killed_time_and_again_is_given_up(ready: Workspace) -> None:
    inject_fault(ready, "train", "die")
    with pytest.raises(StageKilledError, match=r"ended from outside \(code -9\)"):
        run_stage(ready.root, "train", 0)
    assert attempts(ready) == 1 + len(RETRY_DELAYS_S)


@pytest.mark.integration
def test_out_of_memory_is_tried_once_more_with_half_the_batch(ready: Workspace) -> None:
    inject_fault(ready, "train", "once exit 4 train: memory is used up (CUDA out of memory), expected enough of it.")
    assert not run_stage(ready.root, "train", 0).skipped
    log = stage_log(ready, 0, "train").read_text()
    assert attempts(ready) == 2
    assert log.count("train divides its batches by 2") == 1


@pytest.mark.integration
def test_half_the_batch_is_the_last_attempt(ready: Workspace) -> None:
    inject_fault(ready, "train", "exit 4 train: memory is used up, expected enough of it.")
    with pytest.raises(OutOfMemoryError, match="memory is used up"):
        run_stage(ready.root, "train", 0)
    assert attempts(ready) == 2


@pytest.mark.parametrize(
    ("code", "lines", "kind", "again"),
    [
        (255, ["ERROR: failed to reproduce 'train': failed to run: x, exited with 2"], UserError, False),
        (255, ["ERROR: failed to reproduce 'train': failed to run: x, exited with 3"], GuardRailError, False),
        (255, ["ERROR: failed to reproduce 'train': failed to run: x, exited with 5"], DiskFullError, False),
        (255, [f"ERROR: failed to run: x, exited with {EXIT_INTERRUPTED}"], StageKilledError, True),
        (255, ["ERROR: failed to run: x, exited with -9"], StageKilledError, True),
        (255, ["ERROR: failed to run: x, exited with 137"], StageKilledError, True),
        (-9, ["Running stage 'train':"], StageKilledError, True),
        (255, ["ERROR: failed to run: x, exited with -11"], StageError, False),
        (255, ["ERROR: failed to run: x, exited with 1"], StageError, False),
        (255, ["ERROR: '/x' is busy, it is being blocked by: (PID 3)"], StageBusyError, True),
        (255, ["ERROR: unexpected error - [Errno 28] No space left on device: '/x'"], DiskFullError, False),
        (255, ["ERROR: unexpected error - database or disk is full"], DiskFullError, False),
    ],
)
def test_the_end_of_a_stage_has_a_name(code: int, lines: list[str], kind: type[UserError], again: bool) -> None:
    error = stage_failure(Path("/campaign"), "train", code, ["train is at work", *lines], Path("train.log"))
    assert type(error) is kind
    assert is_transient(error) == again


def test_orphans_of_a_dead_night_end_and_what_people_run_stays(tmp_path: Path) -> None:
    code = "import time; print(1, flush=True); time.sleep(60)"
    marks: list[dict[str, str]] = [{WORKSPACE_ENV: str(tmp_path)}, {}, {WORKSPACE_ENV: "/another/campaign"}]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=subprocess_env(**mark), stdout=subprocess.PIPE, text=True
        )
        for mark in marks
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        kill_orphans(tmp_path)
        assert [psutil.pid_exists(process.pid) for process in started] == [False, True, True]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_an_orphan_that_does_not_leave_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "GRACE_S", 0.3)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=subprocess_env(**{WORKSPACE_ENV: str(tmp_path)}),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        kill_orphans(tmp_path)
        assert process.wait(10) == -9
