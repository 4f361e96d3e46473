"""A campaign with rounds in MLflow that took no training: runs, models and aliases as publishing leaves them."""

import uuid

import mlflow
from mlflow import MlflowClient

from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_owner import (
    GIT_REVISION_TAG,
    OWNER_TAG,
    ROUND_NUMBER_TAG,
    claim_model,
    find_experiment,
    require_tracked_owner,
)
from flows.tracking.mlflow_run import CHAMPION, find_or_create_experiment, use_tracking_uri
from flows.workspace import git
from flows.workspace.owner import require_own_folder
from tasks.data.paths import Workspace
from tasks.storage import files


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Return the input."""

    def predict(self, context: object, model_input: list[str]) -> list[str]:
        return model_input


def make_tracked_campaign(workspace: Workspace) -> Workspace:
    """Create a campaign's git repository with label batch 0."""
    workspace.labels.mkdir(parents=True)
    git.init_repository(workspace.root)
    files.write_json(workspace.label_batch(0), {})
    files.write_bytes(workspace.root / ".gitignore", b"/.gleaner/\n/mlflow.db*\n/mlartifacts/\n")
    git.commit(workspace, f"first of {workspace.root.name}", ("data", ".gitignore"))
    return workspace


def publish_fake_round(workspace: Workspace, number: int, *, killed_before_ledger: bool = False) -> None:
    """Commit, log a run with an artifact, register a model as champion, write the ledger and set the tag."""
    files.write_json(workspace.code_versions, {"train": uuid.uuid4().hex})  # copies commit within one second
    revision = git.commit(workspace, f"Derive round {number}", git.DERIVED_PATHS)
    with use_tracking_uri(tracking_uri(workspace.root)):
        client, owner = MlflowClient(), require_own_folder(workspace)
        require_tracked_owner(workspace, client, owner)
        experiment_id, name = find_or_create_experiment(client, workspace, git.campaign_id(workspace.root), owner)
        tags = {ROUND_NUMBER_TAG: str(number), OWNER_TAG: owner.owner_id, GIT_REVISION_TAG: revision}
        with mlflow.start_run(experiment_id=experiment_id, tags=tags, run_name=git.round_tag(number)) as run:
            mlflow.log_text("report", "report.html")
            info = mlflow.pyfunc.log_model(name="teacher", python_model=Model(), pip_requirements=[])
            version = mlflow.register_model(info.model_uri, name).version
        client.set_registered_model_alias(name, CHAMPION, str(version))
        claim_model(client, name, owner)
    if killed_before_ledger:
        return
    files.write_json(workspace.label_batch(number), {})
    files.write_json(workspace.ledger(number), {"format": 2, "round": number, "mlflow": {"run_id": run.info.run_id}})
    git.commit(workspace, f"Round {number}", ("data", "rounds"))
    git.set_tag(workspace.root, git.round_tag(number), "published")


def champion(workspace: Workspace) -> int:
    """Return the version of the champion."""
    with use_tracking_uri(tracking_uri(workspace.root)):
        client = MlflowClient()
        return int(client.get_model_version_by_alias(_model_name(workspace, client), CHAMPION).version)


def load_champion(workspace: Workspace) -> object:
    """Load the champion as a user does, artifacts and all."""
    with use_tracking_uri(tracking_uri(workspace.root)):
        return mlflow.pyfunc.load_model(f"models:/{_model_name(workspace, MlflowClient())}@{CHAMPION}")


def _model_name(workspace: Workspace, client: MlflowClient) -> str:
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    assert experiment is not None
    return str(experiment.name)
