"""Many campaigns at once on one MLflow server with PostgreSQL, and one queue for the GPU.

What a round does with both is real: the owner's check, experiment, run and figures; the turn on the GPU. Stages and the
model are left out. ``GLEANER_CAMPAIGNS`` sets the number (a few, to keep the suite short), ``GLEANER_LOAD_LOG`` names a
file that gets the figures. ``GLEANER_RUNNING_CAMPAIGNS`` sets how many run as processes, with DVC, Prefect and stages:
0 where it is not set, which leaves that test out. A round takes half a minute of a core, and 0.5 GB of memory while it
runs: ``GLEANER_RUNNING_AT_ONCE`` bounds how many do (10), ``GLEANER_RUNNING_ROUNDS`` says how many rounds each has (2).
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from flows.runtime.gpu_lock import GPU_STAGES, gpu_lock
from flows.tracking.mlflow_owner import OWNER_TAG, ROUND_NUMBER_TAG, find_experiment, require_tracked_owner
from flows.tracking.mlflow_run import find_or_create_experiment
from flows.workspace import git
from flows.workspace.owner import require_own_folder
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.small_campaign import BUDGET, SEED, subprocess_env
from tests.flows.tracking_campaign import make_tracked_campaign

pytestmark = [pytest.mark.integration, pytest.mark.services, pytest.mark.timeout(3600)]
NUM_CAMPAIGNS, NUM_ROUNDS = int(os.environ.get("GLEANER_CAMPAIGNS", "5")), 2
NUM_RUNNING = int(os.environ.get("GLEANER_RUNNING_CAMPAIGNS", "0"))
NUM_AT_ONCE = int(os.environ.get("GLEANER_RUNNING_AT_ONCE", "10"))
NUM_RUNNING_ROUNDS = int(os.environ.get("GLEANER_RUNNING_ROUNDS", "2"))
_STAGE_S = 0.05
_LAUNCHER = """
import json, os, sys, time
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path
from flows.cli.app import main
from flows.runtime import gpu_lock

turns, wait_for_turn = Path(sys.argv.pop(1)), gpu_lock.gpu_lock

@contextmanager
def recorded(path, owner, on_wait):
    asked_s = time.monotonic()
    with wait_for_turn(path, owner, on_wait):
        began_s = time.monotonic()
        try:
            yield
        finally:
            line = json.dumps([owner, asked_s, began_s, time.monotonic()]) + chr(10)
            with turns.open("a") as stream:
                stream.write(line)

gpu_lock.gpu_lock = recorded
gpu_lock.visible_gpus = lambda: ["0"]
main()
"""
"""A run on a machine that seems to have a GPU, which writes down its turns: one clock serves all processes."""


class Gpu:
    """A GPU that notices when two campaigns use it at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._in_use = path, threading.Lock()
        self.users: list[str] = []
        self.waits_s: list[float] = []

    def compute(self, campaign: str) -> None:
        """Take a turn, as a stage does."""
        began_s = time.monotonic()
        with gpu_lock(self._path, campaign, lambda _: None):
            self.waits_s.append(time.monotonic() - began_s)
            assert self._in_use.acquire(blocking=False), "two campaigns use the GPU"
            time.sleep(_STAGE_S)
            self.users.append(campaign)
            self._in_use.release()


def run_rounds(workspace: Workspace, client: MlflowClient, gpu: Gpu) -> None:
    """Compute and publish the rounds of one campaign."""
    for number in range(NUM_ROUNDS):
        gpu.compute(workspace.root.name)
        owner = require_own_folder(workspace)
        require_tracked_owner(workspace, client, owner)
        experiment_id, _ = find_or_create_experiment(client, workspace, git.campaign_id(workspace.root), owner)
        tags = {ROUND_NUMBER_TAG: str(number), OWNER_TAG: owner.owner_id}
        run_id = client.create_run(experiment_id, run_name=git.round_tag(number), tags=tags).info.run_id
        client.log_batch(run_id, params=[Param(f"section.key{n}", "value") for n in range(100)])
        client.log_batch(run_id, metrics=[Metric(f"teacher/AP/{n}", float(n), 0, number) for n in range(100)])
        client.set_terminated(run_id)
        ledger = {"format": 2, "round": number, "mlflow": {"run_id": run_id}}
        files.write_json(workspace.ledger(number), ledger)
        git.commit(workspace, f"Round {number}", ("rounds",))
        git.set_tag(workspace.root, git.round_tag(number), "published")


def test_campaigns_take_turns_and_keep_to_their_own_experiment(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    workspaces = [make_tracked_campaign(Workspace(tmp_path / f"campaign-{n:02d}")) for n in range(NUM_CAMPAIGNS)]
    gpu, client = Gpu(tmp_path / "locks" / "gpu-0.lock"), MlflowClient(mlflow_url)
    began_s = time.monotonic()
    with ThreadPoolExecutor(NUM_CAMPAIGNS) as pool:
        for done in [pool.submit(run_rounds, workspace, client, gpu) for workspace in workspaces]:
            done.result()
    took_s = time.monotonic() - began_s
    assert sorted(gpu.users) == sorted(workspace.root.name for workspace in workspaces for _ in range(NUM_ROUNDS))
    for workspace in workspaces:
        experiment = find_experiment(client, git.campaign_id(workspace.root))
        assert experiment is not None
        assert experiment.tags[OWNER_TAG] == require_own_folder(workspace).owner_id
        runs = client.search_runs([experiment.experiment_id])
        assert sorted(run.info.run_name for run in runs) == [git.round_tag(number) for number in range(NUM_ROUNDS)]
        assert all(run.info.status == "FINISHED" and len(run.data.metrics) == 100 for run in runs)
        assert {run.info.run_id for run in runs} == {
            files.read_json(workspace.ledger(number))["mlflow"]["run_id"] for number in range(NUM_ROUNDS)
        }
    log_figures(NUM_CAMPAIGNS, len(gpu.users), took_s, max(gpu.waits_s))


def log_figures(campaigns: int, turns: int, took_s: float, longest_wait_s: float) -> None:
    if path := os.environ.get("GLEANER_LOAD_LOG"):
        figures = {"campaigns": campaigns, "turns": turns, "seconds": round(took_s, 1)}
        Path(path).write_text(json.dumps({**figures, "longest_wait_s": round(longest_wait_s, 1)}) + "\n")


@pytest.mark.skipif(NUM_RUNNING == 0, reason="GLEANER_RUNNING_CAMPAIGNS is not set")
def test_whole_runs_take_turns_and_keep_apart(
    small_campaign_template: Workspace, mlflow_url: str, shared_prefect_server: dict[str, str], tmp_path: Path
) -> None:
    """Many at once: DVC, git, Prefect, MLflow and the queue are real, stages with torch are not."""
    workspaces = [Workspace(tmp_path / f"campaign-{n:02d}") for n in range(NUM_RUNNING)]
    for workspace in workspaces:
        shutil.copytree(small_campaign_template.root, workspace.root)
        somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
        message = f"First of {workspace.root.name}"
        first = git.run_git(workspace.root, *somebody, "commit-tree", "HEAD^{tree}", "-m", message)
        git.run_git(workspace.root, "reset", "--quiet", "--soft", first)
    turns = tmp_path / "turns.jsonl"
    services = {"MLFLOW_TRACKING_URI": mlflow_url, **shared_prefect_server}
    env = subprocess_env(GLEANER_LOCK_DIR=str(tmp_path / "locks"), **services)
    command = [sys.executable, "-c", _LAUNCHER, str(turns), "run", "--rounds", str(NUM_RUNNING_ROUNDS)]

    def run(workspace: Workspace) -> int:
        with (tmp_path / f"{workspace.root.name}.log").open("w") as log:
            return subprocess.call(command, cwd=workspace.root, env=env, stdout=log, stderr=subprocess.STDOUT)

    began_s = time.monotonic()
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        codes = list(pool.map(run, workspaces))
    took_s = time.monotonic() - began_s
    assert codes == [0] * NUM_RUNNING, [log.read_text()[-2000:] for log in tmp_path.glob("*.log")]
    used = sorted((json.loads(line) for line in turns.read_text().splitlines()), key=lambda turn: turn[2])
    assert len(used) == len(GPU_STAGES) * NUM_RUNNING_ROUNDS * NUM_RUNNING
    assert all(before[3] <= after[2] for before, after in itertools.pairwise(used)), "two campaigns use the GPU"
    client = MlflowClient(mlflow_url)
    for workspace in workspaces:
        assert_published_once(workspace, client)
    log_figures(NUM_RUNNING, len(used), took_s, max(turn[2] - turn[1] for turn in used))


def assert_published_once(workspace: Workspace, client: MlflowClient) -> None:
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [git.round_tag(number) for number in range(NUM_RUNNING_ROUNDS)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.info.run_id for run in runs} == {
        files.read_json(workspace.ledger(number))["mlflow"]["run_id"] for number in range(NUM_RUNNING_ROUNDS)
    }
    batches = [read_batch(workspace.label_batch(number)) for number in range(NUM_RUNNING_ROUNDS)]
    labeled = [image.image_id for batch in batches for image in batch.images]
    assert len(labeled) == len(set(labeled)) == SEED + BUDGET * (NUM_RUNNING_ROUNDS - 1)
