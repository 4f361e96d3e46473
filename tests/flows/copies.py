"""Copies of a campaign that tests go on with, as if each had been the campaign's own folder from the start."""

import shutil
from pathlib import Path

from flows.tracking.mlflow_owner import connect, find_experiment, is_elsewhere, rewrite_artifact_locations
from flows.workspace.git import campaign_id
from flows.workspace.owner import read_owner, settle
from tasks.data.paths import Workspace


def copy_as_own(original: Workspace, root: Path) -> Workspace:
    """Copy a campaign with its owner id; its MLflow's artifacts are those of the copy."""
    shutil.copytree(original.root, root)
    workspace = Workspace(root)
    owner = read_owner(workspace)
    if owner is None:
        return workspace
    settle(workspace, owner.owner_id)
    client = connect(root)
    experiment = None if client is None else find_experiment(client, campaign_id(root))
    if experiment is not None and is_elsewhere(root, experiment):
        rewrite_artifact_locations(root, experiment)
    return workspace
