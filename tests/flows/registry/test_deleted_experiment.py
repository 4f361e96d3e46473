"""Experiments that somebody deletes in MLflow's pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.tracking.mlflow_run import find_or_create_experiment, use_tracking_uri
from flows.workspace.owner import settle
from tasks.data.paths import Workspace


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MlflowClient]:
    with use_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        yield MlflowClient()


def test_a_deleted_experiment_is_restored_with_its_runs(client: MlflowClient, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    experiment_id, name = find_or_create_experiment(client, workspace, "c" * 40, settle(workspace, None))
    run_id = client.create_run(experiment_id).info.run_id
    client.delete_experiment(experiment_id)
    assert find_or_create_experiment(client, workspace, "c" * 40, settle(workspace, None)) == (experiment_id, name)
    assert client.get_experiment(experiment_id).lifecycle_stage == "active"
    assert [run.info.run_id for run in client.search_runs([experiment_id])] == [run_id]


def test_another_campaigns_deleted_experiment_stays_deleted(client: MlflowClient, tmp_path: Path) -> None:
    first_id, _ = find_or_create_experiment(client, Workspace(tmp_path), "a" * 40, settle(Workspace(tmp_path), None))
    client.delete_experiment(first_id)
    second_id, _ = find_or_create_experiment(client, Workspace(tmp_path), "b" * 40, settle(Workspace(tmp_path), None))
    assert second_id != first_id
    assert client.get_experiment(first_id).lifecycle_stage == "deleted"
