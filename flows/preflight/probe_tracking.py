"""``python -m flows.preflight.probe_tracking``: write and read a run with an artifact in MLflow, then delete it.

The run lives in an experiment of its own, so no campaign's figures ever see it. Prints one JSON object; ends
with code 1 and one line where it cannot.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_run import silence_mlflow

EXPERIMENT = "gleaner-doctor"
_METRIC, _VALUE = "doctor", 1.0
_ARTIFACT_NAME = "doctor.txt"


def main() -> None:
    """Probe the MLflow of the campaign in the current folder."""
    silence_mlflow()
    started_s = time.monotonic()
    try:
        _write_read_delete(MlflowClient(tracking_uri(Path.cwd())))
    except Exception as error:  # of the client, its database driver or its artifact store: it becomes one line
        message = next((line for line in str(error).splitlines() if line.strip()), "")
        sys.stderr.write(f"{type(error).__name__}: {message}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps({"seconds": round(time.monotonic() - started_s, 2)}) + "\n")


def _write_read_delete(client: MlflowClient) -> None:
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


def _experiment(client: MlflowClient) -> str:
    """Return the probe's own experiment; a local database needs the location of artifacts, a server knows it."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    local = tracking_uri(Path.cwd()).startswith("sqlite:")
    location = (Path.cwd() / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


if __name__ == "__main__":
    main()
