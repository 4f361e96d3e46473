"""One stage through DVC and Prefect: what it says when it fails, and when it is tried again."""

import json
import os

import psutil
import pytest

from flows.stage_runner import StageBusyError, StageError, StageTimeoutError, run_stage
from flows.workspace.rounds import stage_log, stage_seconds
from tasks.data.paths import Workspace
from tasks.runtime.errors import GuardRailError, UserError
from tests.flows.small_campaign import inject_fault

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_test_server")]


@pytest.fixture
def ready(small_campaign: Workspace) -> Workspace:
    """Everything before train is derived."""
    for stage in ("prepare", "assemble"):
        assert not run_stage(small_campaign.root, stage, 0).skipped
    return small_campaign


def test_a_stage_done_already_is_skipped_and_keeps_its_time(ready: Workspace) -> None:
    before = stage_seconds(ready, 0)
    assert run_stage(ready.root, "prepare", 0).skipped
    assert stage_seconds(ready, 0) == before
    assert set(before) == {"prepare", "assemble"}
    log = stage_log(ready, 0, "prepare").read_text()
    assert "Running stage 'prepare'" in log
    assert "didn't change" in log


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (3, GuardRailError)])
def test_a_users_mistake_is_told_in_the_stages_own_words(ready: Workspace, code: int, kind: type[UserError]) -> None:
    inject_fault(ready, "train", f"exit {code} params.yaml: train.iterations is 0, expected more. Raise it.")
    with pytest.raises(UserError) as caught:
        run_stage(ready.root, "train", 0)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert str(caught.value) == (
        "train: params.yaml: train.iterations is 0, expected more. Raise it. "
        f"Repeat it alone with: cd {ready.root} && dvc repro --single-item train"
    )
    assert stage_log(ready, 0, "train").read_text().count("train is at work") == 1  # not tried again


def test_a_crash_names_its_log_and_the_command_that_repeats_it(ready: Workspace) -> None:
    inject_fault(ready, "train", "exit 1 ValueError: no idea")
    with pytest.raises(StageError) as caught:
        run_stage(ready.root, "train", 0)
    assert caught.value.exit_code == 1
    assert "the stage ended with code 1 (ValueError: no idea)" in str(caught.value)
    assert str(stage_log(ready, 0, "train")) in str(caught.value)
    assert "dvc repro --single-item train" in str(caught.value)
    assert stage_log(ready, 0, "train").read_text().count("train is at work") == 1


def test_what_dvc_itself_refuses_is_told(ready: Workspace) -> None:
    ready.index.unlink()
    with pytest.raises(StageError, match=r"prepare: failed to reproduce 'prepare': .*index.parquet"):
        run_stage(ready.root, "prepare", 0)


def test_a_stage_somebody_else_is_writing_is_tried_again(ready: Workspace) -> None:
    """DVC's lock file names this very process, which is alive, as the writer."""
    holder = {"pid": os.getpid(), "cmd": "a test"}
    path = str(ready.derived("train").resolve())
    lock = ready.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {path: holder}, "read": {}}))
    with pytest.raises(StageBusyError):
        run_stage.with_options(retry_delay_seconds=0.1, retries=2)(ready.root, "train", 0)
    assert stage_log(ready, 0, "train").read_text().count("is busy") == 3
    lock.unlink()
    assert not run_stage(ready.root, "train", 0).skipped


def test_a_stage_that_takes_too_long_is_ended_with_all_its_processes(ready: Workspace) -> None:
    inject_fault(ready, "train", "hang")
    with pytest.raises(StageTimeoutError, match=r"longer than nightly.stage_timeout_minutes \(0.1\)"):
        run_stage(ready.root, "train", 0, limit_s=6)
    assert stage_log(ready, 0, "train").read_text().count("Running stage 'train'") <= 1  # not tried again
    commands = [
        " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(ready.root)
    ]
    assert commands == []


def test_a_stage_runs_with_the_python_and_the_code_of_gleaner(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where neither the environment's programs nor its packages are on any path, and the shell is odd."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SHELL", "/bin/false")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    text = ready.params.read_text()
    ready.params.write_text(text.replace("empty_images: keep", "empty_images: drop"))
    assert not run_stage(ready.root, "assemble", 0).skipped
