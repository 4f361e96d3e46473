"""Make a folder the one that goes on with its campaign: after a move, in a copy, in a clone, from a backup.

Order: the folder's own record, the line in ``owners.jsonl``, MLflow, the label provider. A call that was killed
anywhere is repeated; until then the services refuse this folder, or still take it for the former one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow import MlflowClient

from flows.annotation.providers import create_provider
from flows.annotation.providers.base import OwnedProvider
from flows.tracking.mlflow_owner import (
    SUPERSEDED_TAG,
    claim,
    claim_model,
    connect,
    describe_rounds,
    find_experiment,
    is_elsewhere,
    require_artifacts,
    require_tracked_owner,
    rewrite_artifact_locations,
    tracked_owner,
    unknown_runs,
)
from flows.tracking.mlflow_run import silence_mlflow
from flows.workspace import git
from flows.workspace.owner import (
    FolderState,
    Owner,
    OwnerError,
    folder_state,
    log_adoption,
    read_owner,
    require_own_folder,
    settle,
)
from tasks.data.paths import Workspace
from tasks.params import Params


@dataclass(frozen=True)
class Adoption:
    """What was changed."""

    owner: Owner
    changes: Sequence[str]
    """One sentence each; empty where the folder was the campaign's own already."""


def adopt(workspace: Workspace, params: Params, reason: str) -> Adoption:
    """Make this folder the campaign's own, and tell MLflow and the label provider. The caller must hold the run lock.

    A renamed folder keeps its owner id; any other gets a new one, so that the folder it came from stops at its next
    run. Finished runs of rounds that this folder does not know are marked as superseded; nothing is deleted.

    Raises:
        UserError: MLflow or the label provider does not answer, or artifacts are missing.
    """
    state, former = folder_state(workspace), read_owner(workspace)
    is_known = state in (FolderState.OWN, FolderState.MOVED)
    owner_id = former.owner_id if is_known and former else None
    silence_mlflow()
    client = connect(workspace.root)
    changes = [] if state is FolderState.OWN else [_describe(state, former)]
    changes += [] if client is None else _describe_tracking(workspace, client, owner_id)
    owner = settle(workspace, owner_id)
    if changes:
        log_adoption(workspace, owner, reason, {"found": changes})
    if client is not None:
        _adopt_tracking(workspace, client, owner)
    provider = create_provider(workspace, params)
    former_place = provider.take_over() if isinstance(provider, OwnedProvider) else None
    if former_place is not None:
        changes.append(f"The label provider took this campaign for that of {former_place}.")
    return Adoption(owner, changes)


def needs_adoption(workspace: Workspace) -> bool:
    """Tell whether a run would refuse this folder, as far as it knows without the label provider."""
    try:
        owner, client = require_own_folder(workspace), connect(workspace.root)
        if client is not None:
            require_tracked_owner(workspace, client, owner)
    except OwnerError:
        return True
    return False


def _describe(state: FolderState, former: Owner | None) -> str:
    if state is FolderState.MOVED and former is not None:
        return f"The folder was renamed: it was {former.place}."
    if state is FolderState.COPY and former is not None:
        return f"The folder was a copy of {former.place}, and is the campaign's own now."
    return "The folder had no record of its owner, and is the campaign's own now."


def _describe_tracking(workspace: Workspace, client: MlflowClient, owner_id: str | None) -> list[str]:
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    if experiment is None:
        return []
    changes, tracked = [], tracked_owner(experiment)
    if tracked.owner_id not in (None, owner_id):
        changes.append(f"MLflow experiment {experiment.name} belonged to {tracked.place}.")
    unknown = unknown_runs(workspace, client, experiment)
    if unknown:
        changes.append(f"MLflow has {describe_rounds(unknown)}, which are not here: marked as superseded.")
    if is_elsewhere(workspace.root, experiment):
        require_artifacts(workspace.root, experiment)
        changes.append(f"MLflow looked for artifacts at {experiment.artifact_location}: corrected.")
    return changes


def _adopt_tracking(workspace: Workspace, client: MlflowClient, owner: Owner) -> None:
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    if experiment is None:
        return
    if is_elsewhere(workspace.root, experiment):
        rewrite_artifact_locations(workspace.root, experiment)
    for run in unknown_runs(workspace, client, experiment):
        client.set_tag(run.info.run_id, SUPERSEDED_TAG, f"adoption by {owner.owner_id}")
    claim(client, experiment.experiment_id, owner)
    claim_model(client, experiment.name, owner)
