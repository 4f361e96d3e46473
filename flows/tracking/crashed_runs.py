"""Close the MLflow and Prefect runs that a killed process left open.

``flows.workspace.run_lock`` writes a record of each crashed process to ``.gleaner/crashed_runs``: its identity
and its flow runs. The record is deleted when all its runs are closed. So runs of living processes are never touched,
and while a service is unavailable the record is kept for the next run.
"""

import logging
from uuid import UUID

from mlflow import MlflowClient
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.runtime.process_env import tracking_uri
from flows.runtime.retries import translate_service_errors
from flows.tracking.mlflow_run import PROCESS_TAG
from flows.workspace.git import campaign_id
from flows.workspace.lock import Lock, LockOwner, read_owner
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_OPEN_STATES = (StateType.RUNNING, StateType.PENDING, StateType.PAUSED)
_FLOW_RUNS_NOTE = "flow_runs"
log = logging.getLogger(__name__)


def record_flow_runs(lock: Lock) -> None:
    """Note the ids of the current Prefect flow runs in the lock, for the recovery after a crash."""
    lock.add_notes(**{_FLOW_RUNS_NOTE: " ".join(sorted(_current_flow_runs()))})


def close_crashed_runs(workspace: Workspace) -> None:
    """Close the open runs of this workspace's crashed processes. The caller must hold the run lock."""
    for record in sorted(workspace.crashed_runs.glob("*.json")):
        owner = read_owner(record)
        try:
            with translate_service_errors("runs of a crashed process"):
                if owner is not None:
                    _close_mlflow_runs(workspace, owner)
                    _close_flow_runs(owner)
        except UserError as error:  # a failed clean-up must not prevent the round
            log.warning("%s The next run tries again.", error)
            return
        record.unlink()


def _close_mlflow_runs(workspace: Workspace, owner: LockOwner) -> None:
    """Terminate the process's runs that are RUNNING; publishing its round again reopens the run."""
    client = MlflowClient(tracking_uri(workspace.root))
    campaign = campaign_id(workspace.root)
    experiments = client.search_experiments(filter_string=f"tags.`gleaner.campaign` = '{campaign}'")
    ids = [experiment.experiment_id for experiment in experiments]
    run_filter = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` = '{owner.identity}'"
    for run in client.search_runs(ids, run_filter) if ids else ():
        client.set_terminated(run.info.run_id, "KILLED")
        log.warning("MLflow run %s of %s is closed", run.info.run_name, owner)


def _close_flow_runs(owner: LockOwner) -> None:
    recorded = set(owner.notes.get(_FLOW_RUNS_NOTE, "").split())
    for run_id in recorded - _current_flow_runs():  # a rescheduled run keeps its id
        _close_flow_run(UUID(run_id), f"{owner} was killed")


def _current_flow_runs() -> set[str]:
    """Ids of the current flow run and of its root flow run."""
    return {run_id for run_id in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if run_id}


def _close_flow_run(run_id: UUID, reason: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:  # a run of another server
            return
        if state is None or state.type in _OPEN_STATES:
            client.set_flow_run_state(run_id, Crashed(message=reason), force=True)
        elif state.type == StateType.CANCELLING:
            client.set_flow_run_state(run_id, Cancelled(message=reason), force=True)
