"""Nights that are killed, interrupted or doubled, as processes of their own with their own Prefect server."""

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from flows.run_hooks import close_crashed_runs
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_run import PROCESS_TAG
from flows.workspace import dvc, git
from flows.workspace.lock import ProcessIdentity, read_owner
from flows.workspace.rounds import stage_log
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace
from tests.flows.cli_runner import start_cli_run, wait_until
from tests.flows.small_campaign import inject_fault, run_gleaner

pytestmark = pytest.mark.e2e


def said(workspace: Workspace, stage: str) -> int:
    """How often a replaced stage began to work in round 0."""
    log = stage_log(workspace, 0, stage)
    return log.read_text().count(f"{stage} is at work") if log.is_file() else 0


def night_hanging_in(workspace: Workspace, stage: str, **changes: str) -> tuple[subprocess.Popen[str], Path]:
    """A night that has begun ``stage``, and the file that lets it hang there; without it the next one goes on."""
    hanging = inject_fault(workspace, stage, "hang")
    begun = said(workspace, stage)
    night = start_cli_run(workspace.root, **changes)
    wait_until(lambda: said(workspace, stage) > begun)
    return night, hanging


def stop_in(
    workspace: Workspace, stage: str, number: signal.Signals, **changes: str
) -> tuple[int, str, list[psutil.Process], list[str]]:
    """Let a night hang in ``stage``, send it a signal; its code, its words, its former children, their commands."""
    night, hanging = night_hanging_in(workspace, stage, **changes)
    children = psutil.Process(night.pid).children(recursive=True)
    commands = [" ".join(child.cmdline()) for child in children]
    night.send_signal(number)
    words, _ = night.communicate(timeout=60)
    hanging.unlink()
    return night.returncode, words, children, commands


def all_gone(children: list[psutil.Process]) -> bool:
    return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def runs_and_versions(workspace: Workspace) -> tuple[int, int]:
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return len(client.search_runs(experiments)), len(client.search_model_versions())


def test_a_night_killed_in_train_and_in_infer_goes_on_and_does_nothing_twice(
    small_campaign: Workspace, shared_prefect_server: dict[str, str]
) -> None:
    servers: list[dict[str, str]] = [{}, shared_prefect_server]  # its own, which is killed with it; one that lives on
    for stage, server in zip(("train", "infer"), servers, strict=True):
        code, _, children, commands = stop_in(small_campaign, stage, signal.SIGKILL, **server)
        assert code == -signal.SIGKILL
        assert any("fake_stages.py" in command for command in commands)
        wait_until(lambda: all_gone(children))  # noqa: B023 (called at once)
        assert git.run_git(small_campaign.root, "tag") == ""
    finished = run_gleaner("run", cwd=small_campaign.root, **shared_prefect_server)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    # train: killed once, then done; evaluate: done by the second night; infer: killed there, done by the third
    assert {stage: said(small_campaign, stage) for stage in ("train", "evaluate", "infer", "report")} == {
        "train": 2,
        "evaluate": 1,
        "infer": 2,
        "report": 1,
    }
    assert sorted(path.name for path in small_campaign.labels.iterdir()) == ["batch-0000.json"]
    assert git.run_git(small_campaign.root, "tag").splitlines() == ["round-0000"]
    assert runs_and_versions(small_campaign) == (1, 1)
    assert [path.name for path in sorted((small_campaign.root / "deliveries").iterdir())] == ["batch-0001"]
    assert dvc.is_clean(small_campaign.root)
    assert git.run_git(small_campaign.root, "status", "--porcelain") == ""
    assert "Round 0 is finished" in finished.stdout
    assert "Report: " in finished.stdout
    assert "was killed. It is continued" in " ".join(finished.stderr.split())
    assert "Traceback" not in finished.stderr


def test_ctrl_c_takes_the_stage_with_it(small_campaign: Workspace) -> None:
    code, words, children, _ = stop_in(small_campaign, "train", signal.SIGINT)
    assert code == 130, words
    wait_until(lambda: all_gone(children))
    assert "Traceback" not in words
    assert "resumes from here" in words


def test_sigterm_takes_the_stage_with_it(small_campaign: Workspace) -> None:
    code, words, children, _ = stop_in(small_campaign, "train", signal.SIGTERM)
    assert code == -signal.SIGTERM, words
    wait_until(lambda: all_gone(children))
    assert "Traceback" not in words


def test_a_second_night_says_so_and_leaves(small_campaign: Workspace) -> None:
    with run_lock(small_campaign):
        second = run_gleaner("run", cwd=small_campaign.root)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "another run is active" in second.stderr
    assert not (small_campaign.root / "derived").exists()


@pytest.mark.usefixtures("prefect_test_server")
def test_cancel_in_prefects_ui_ends_a_night_that_no_worker_has_started(small_campaign: Workspace) -> None:
    api_url = PREFECT_API_URL.value()
    assert api_url is not None
    night, _ = night_hanging_in(small_campaign, "train", PREFECT_API_URL=api_url)
    children = psutil.Process(night.pid).children(recursive=True)
    holder = read_owner(small_campaign.lock.with_name("lock.owner"))
    assert holder is not None
    assert holder.identity.pid == night.pid
    run_id = UUID(holder.notes["flow_runs"])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelling())
        asked_s = time.monotonic()
        words, _ = night.communicate(timeout=60)
        assert time.monotonic() - asked_s < 30
        assert night.returncode == -signal.SIGTERM, words
        assert client.read_flow_run(run_id).state_name == "Cancelled"
    assert "Traceback" not in words
    wait_until(lambda: all_gone(children))


@pytest.mark.usefixtures("prefect_test_server")
def test_the_night_after_a_killed_one_closes_what_it_left_open(small_campaign: Workspace) -> None:
    """And of another campaign's run, or of a night that lives, it touches nothing."""
    api_url = PREFECT_API_URL.value()
    assert api_url is not None
    night, _ = night_hanging_in(small_campaign, "train", PREFECT_API_URL=api_url)
    holder = read_owner(small_campaign.lock.with_name("lock.owner"))
    assert holder is not None
    dead_run = UUID(holder.notes["flow_runs"])
    night.kill()
    night.communicate()
    client = MlflowClient(tracking_uri(small_campaign.root))
    campaign = git.campaign_id(small_campaign.root)
    experiment = client.create_experiment("tiny", tags={"gleaner.campaign": campaign})
    others = [replace(holder.identity, pid=1), ProcessIdentity.own()]
    left, *living = (
        client.create_run(experiment, tags={PROCESS_TAG: str(identity)}).info.run_id
        for identity in (holder.identity, *others)
    )
    with run_lock(small_campaign):  # buries the dead night
        close_crashed_runs(small_campaign)
    assert client.get_run(left).info.status == "KILLED"
    assert {client.get_run(run).info.status for run in living} == {"RUNNING"}
    with get_client(sync_client=True) as prefect:
        assert prefect.read_flow_run(dead_run).state_name == "Crashed"
    assert list(small_campaign.crashed_runs.iterdir()) == []
