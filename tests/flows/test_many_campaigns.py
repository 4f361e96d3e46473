"""Many campaigns at once on one MLflow server with PostgreSQL, and one queue for the GPU.

What a round does with both is real: the owner's check, experiment, run and figures; the turn on the GPU. Stages and the
model are left out. ``GLEANER_CAMPAIGNS`` sets the number (a few, to keep the suite short), ``GLEANER_LOAD_LOG`` names a
file that gets the figures.
"""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from flows.runtime.gpu_lock import gpu_lock
from flows.tracking.mlflow_owner import OWNER_TAG, ROUND_NUMBER_TAG, find_experiment, require_tracked_owner
from flows.tracking.mlflow_run import find_or_create_experiment
from flows.workspace import git
from flows.workspace.owner import require_own_folder
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.tracking_campaign import make_tracked_campaign

pytestmark = [pytest.mark.integration, pytest.mark.services, pytest.mark.timeout(3600)]
NUM_CAMPAIGNS, NUM_ROUNDS = int(os.environ.get("GLEANER_CAMPAIGNS", "5")), 2
_STAGE_S = 0.05


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
    if path := os.environ.get("GLEANER_LOAD_LOG"):
        figures = {"campaigns": NUM_CAMPAIGNS, "turns": len(gpu.users), "seconds": round(took_s, 1)}
        Path(path).write_text(json.dumps({**figures, "longest_wait_s": round(max(gpu.waits_s), 1)}) + "\n")
