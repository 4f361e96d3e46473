"""Nights that nobody starts: Prefect on PostgreSQL, prefect.yaml, a worker, and the clock."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from mlflow import MlflowClient

from flows.workspace import git
from flows.workspace.rounds import read_ledger
from flows.workspace.scaffold import create_workspace
from infra.services import processes
from tasks.data.paths import Workspace
from tests.flows.small_campaign import fake_heavy_stages, make_source, subprocess_env, workspace_config
from tests.services import call_prefect_api

pytestmark = [pytest.mark.e2e, pytest.mark.services]
REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = REPOSITORY / "prefect.yaml"
_TIMEOUT_S = 900.0
_SCHEDULER_TIMEOUT_S = 20.0
_START_DELAY_S = 20.0


def list_flow_runs(prefect_url: str, deployment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call_prefect_api(
        prefect_url, "flow_runs/filter", deployments={"name": {"any_": [deployment]}}, sort="EXPECTED_START_TIME_ASC"
    )
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, message: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, message
        time.sleep(0.5)


@pytest.fixture(scope="module")
def shell_env(tmp_path_factory: pytest.TempPathFactory, prefect_url: str, mlflow_url: str) -> dict[str, str]:
    """What a member of the team has after ``. .stack/env``, and nothing of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").touch()
    return subprocess_env(
        HOME=str(home),
        GIT_CONFIG_GLOBAL=str(home / ".gitconfig"),
        GIT_CONFIG_SYSTEM=os.devnull,
        PREFECT_API_URL=f"{prefect_url}/api",
        PREFECT_HOME=str(home / ".prefect"),
        MLFLOW_TRACKING_URI=mlflow_url,
        PREFECT_WORKER_QUERY_SECONDS="2",
    )


def run_prefect_cli(shell_env: Mapping[str, str], *arguments: str, cwd: Path = REPOSITORY) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=cwd, env=shell_env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work_pools(shell_env: dict[str, str]) -> None:
    for name in ("gpu", "cpu"):
        run_prefect_cli(shell_env, "work-pool", "create", name, "--type", "process", "--overwrite")


@contextmanager
def background_process(shell_env: Mapping[str, str], log: Path, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that runs until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=dict(shell_env),
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        processes.kill(process)


def make_campaign(folder: Path, name: str, seed: int) -> Workspace:
    workspace = Workspace(folder / name)
    create_workspace(workspace.root, workspace_config(make_source(folder / f"photos-{name}"), f"seed={seed}"))
    fake_heavy_stages(workspace)
    return workspace


@pytest.fixture
def campaigns(tmp_path: Path, shell_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Workspace]:
    """Two campaigns of one team."""
    for name in ("HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, shell_env[name])
    return [make_campaign(tmp_path, name, seed) for seed, name in enumerate(("cells", "screws"))]


def test_the_deployment_as_it_stands_gets_its_next_nights_at_two_in_berlin(
    shell_env: dict[str, str], work_pools: None, prefect_url: str, tmp_path: Path
) -> None:
    """Guards the two version traps: with them the server does not start, or no run is ever scheduled."""
    run_prefect_cli({**shell_env, "GLEANER_CAMPAIGN": str(tmp_path)}, "deploy", "--all")
    wait_until(lambda: bool(list_flow_runs(prefect_url, "nightly")), _SCHEDULER_TIMEOUT_S, "no run was scheduled")
    first = list_flow_runs(prefect_url, "nightly")[0]
    assert (first["state_type"], first["work_pool_name"]) == ("SCHEDULED", "gpu")
    assert first["parameters"] == {"root": str(tmp_path)}
    begins = datetime.fromisoformat(first["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin"))
    assert (begins.hour, begins.minute) == (2, 0)
    deployment = call_prefect_api(prefect_url, "deployments/filter", deployments={"name": {"any_": ["nightly"]}})[0]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment["pull_steps"] in (None, [])


def write_prefect_yaml(campaigns: list[Workspace], folder: Path) -> Path:
    """prefect.yaml as a team has it: one entry per campaign, its nights beginning in some seconds.

    And every minute again, for a machine so slow that the first moment passes before all is set up.
    """
    content = yaml.safe_load(DEPLOYMENTS.read_text())
    begins = datetime.now(UTC) + timedelta(seconds=_START_DELAY_S)
    when = {"interval": 60, "anchor_date": begins.isoformat(), "timezone": "UTC", "active": True}
    night = content.pop("definitions")["nightly"]
    content["deployments"] = [
        {**night, "name": workspace.root.name, "parameters": {"root": str(workspace.root)}, "schedules": [when]}
        for workspace in campaigns
    ]
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.timeout(1200)  # servers, two whole nights; a minute where nothing else is at work
def test_two_campaigns_have_their_nights_by_schedule_side_by_side(
    shell_env: dict[str, str],
    work_pools: None,
    prefect_url: str,
    mlflow_url: str,
    campaigns: list[Workspace],
    tmp_path: Path,
) -> None:
    run_prefect_cli(
        shell_env, "deploy", "--all", "--prefect-file", str(write_prefect_yaml(campaigns, tmp_path)), cwd=tmp_path
    )
    log = tmp_path / "worker.log"
    names = [workspace.root.name for workspace in campaigns]

    def nights() -> list[dict[str, Any]]:
        """The first night of each campaign; one that was due while another was at work is cancelled."""
        found = (
            [run for run in list_flow_runs(prefect_url, name) if run["state_type"] != "CANCELLED"] for name in names
        )
        return [runs[0] for runs in found if runs]

    def ended() -> bool:
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        return [run["state_type"] in final for run in nights()] == [True, True]

    with background_process(shell_env, log, "prefect", "worker", "start", "--pool", "gpu", "--type", "process"):
        wait_until(ended, _TIMEOUT_S, "the nights did not end")
    assert [run["state_type"] for run in nights()] == ["COMPLETED"] * 2, log.read_text()
    assert all(run["auto_scheduled"] for run in nights())
    assert max(run["start_time"] for run in nights()) < min(run["end_time"] for run in nights())  # side by side
    client = MlflowClient(mlflow_url)
    for workspace in campaigns:
        assert git.has_tag(workspace.root, "round-0000")
        recorded = read_ledger(workspace, 0)["mlflow"]
        run = client.get_run(recorded["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        assert "report.html" in json.dumps([entry.path for entry in _artifacts(client, recorded["run_id"])])
        assert client.get_model_version(recorded["model_name"], str(recorded["model_version"]))


def _artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> list[Any]:
    found = client.list_artifacts(run_id, folder)
    return [part for entry in found for part in (_artifacts(client, run_id, entry.path) if entry.is_dir else [entry])]
