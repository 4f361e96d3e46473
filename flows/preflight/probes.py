"""Write, read and delete a small object in a service: ``python -m flows.preflight.probes remote`` or ``tracking``.

Each probe runs in a process of its own, in the folder of the campaign. It prints one JSON object; where it fails, it
ends with code 1 and one line.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "gleaner-doctor"
_CONTENT = b"written by gleaner doctor\n"
_METRIC, _VALUE = "doctor", 1.0
_ARTIFACT_NAME = "doctor.txt"


def main() -> None:
    """Run the probe that the command line names."""
    started_s = time.monotonic()
    try:
        facts = PROBES[sys.argv[1]]()
    except Exception as error:  # of any driver, client or database: it becomes one line
        message = next((line for line in str(error).splitlines() if line.strip()), "")
        sys.stderr.write(f"{type(error).__name__}: {message}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps({**facts, "seconds": round(time.monotonic() - started_s, 2)}) + "\n")


def probe_remote() -> dict[str, str]:
    """Write, read and delete an object in DVC's default remote, and return the remote's name.

    Through DVC's own configuration and drivers, so that whatever kind of remote it is, what is tried is what a push
    does.
    """
    from flows.workspace.dvc_cache import open_repo

    with open_repo(Path.cwd()) as repo:
        remote = repo.cloud.get_remote()
        _try_object(remote.fs, remote.path)
        return {"remote": remote.name}


def _try_object(filesystem: Any, folder: str) -> None:
    path = filesystem.join(folder, "gleaner-doctor", uuid.uuid4().hex)
    filesystem.makedirs(filesystem.parent(path), exist_ok=True)
    filesystem.pipe_file(path, _CONTENT)
    try:
        if filesystem.cat_file(path) != _CONTENT:
            raise OSError(f"the content of {path} is not what was written")
    finally:
        filesystem.rm_file(path)


def probe_tracking() -> dict[str, str]:
    """Write and read a run with an artifact in MLflow, then delete it.

    The run is in an experiment of its own, so that it is never among a campaign's metrics.
    """
    from mlflow import MlflowClient

    from flows.runtime.process_env import tracking_uri
    from flows.tracking.mlflow_run import silence_mlflow

    silence_mlflow()
    client = MlflowClient(tracking_uri(Path.cwd()))
    problem = _owner_problem(client)
    if not problem["owner_problem"]:
        _try_run(client)
    return problem


def _owner_problem(client: "MlflowClient") -> dict[str, str]:
    """Say whether the campaign's experiment belongs to this folder, and its artifacts are where MLflow looks."""
    from flows.tracking.mlflow_owner import require_tracked_owner
    from flows.workspace.owner import OwnerError, read_owner
    from tasks.data.paths import Workspace

    workspace = Workspace(Path.cwd())
    owner = read_owner(workspace)
    try:
        if owner is not None:
            require_tracked_owner(workspace, client, owner)
    except OwnerError as error:
        return {"owner_problem": f"{error.where}: {error.problem}", "owner_fix": error.fix}
    return {"owner_problem": "", "owner_fix": ""}


def _try_run(client: "MlflowClient") -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    run = client.create_run(_experiment(client), run_name=EXPERIMENT)
    try:
        client.log_metric(run.info.run_id, _METRIC, _VALUE)
        client.log_text(run.info.run_id, EXPERIMENT, _ARTIFACT_NAME)
        metric_value = client.get_run(run.info.run_id).data.metrics.get(_METRIC)
        artifact_paths = [item.path for item in client.list_artifacts(run.info.run_id)]
        if metric_value != _VALUE or artifact_paths != [_ARTIFACT_NAME]:
            raise MlflowException(
                f"the run came back with {metric_value} and {artifact_paths}, expected what was written"
            )
        artifacts: Any = get_artifact_repository(str(run.info.artifact_uri))
        artifacts.delete_artifacts(_ARTIFACT_NAME)
    finally:
        client.set_terminated(run.info.run_id)
        client.delete_run(run.info.run_id)


def _experiment(client: "MlflowClient") -> str:
    """Return the probe's own experiment; a local database needs the location of artifacts, a server knows it."""
    from flows.tracking.mlflow_owner import artifact_location, has_own_artifacts

    location = artifact_location(Path.cwd()) if has_own_artifacts(Path.cwd()) else None
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and location not in (None, found.artifact_location):  # of this folder before it was moved
        client.rename_experiment(found.experiment_id, f"{EXPERIMENT}-{found.experiment_id}")
        found = None
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


PROBES: Mapping[str, Callable[[], dict[str, str]]] = {"remote": probe_remote, "tracking": probe_tracking}

if __name__ == "__main__":
    main()
