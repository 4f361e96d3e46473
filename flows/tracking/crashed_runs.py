"""What a killed night left open at MLflow and Prefect, closed as soon as they answer.

A dead night is remembered by a file in ``.gleaner/crashed_runs``, which says which process it was and what it had
open; the file goes when all of that is closed. So nothing is searched for, nothing of a living night is touched,
and a service that is away tonight is asked again tomorrow.
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
from flows.runtime.service_errors import translate_service_errors
from flows.tracking.mlflow_run import PROCESS_TAG
from flows.workspace.git import campaign_id
from flows.workspace.lock import Lock, LockOwner, read_owner
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_OPEN_STATES = (StateType.RUNNING, StateType.PENDING, StateType.PAUSED)
_FLOW_RUNS_NOTE = "flow_runs"
log = logging.getLogger(__name__)


def record_flow_runs(lock: Lock) -> None:
    """Write into the lock which runs of Prefect this night is, for whoever comes after its death."""
    lock.add_notes(**{_FLOW_RUNS_NOTE: " ".join(sorted(_current_flow_runs()))})


def close_crashed_runs(workspace: Workspace) -> None:
    """Close what dead nights of this workspace left open; only with the night's lock in hand."""
    for record in sorted(workspace.crashed_runs.glob("*.json")):
        owner = read_owner(record)
        try:
            with translate_service_errors("what a killed night left open"):
                if owner is not None:
                    _close_mlflow_runs(workspace, owner)
                    _close_flow_runs(owner)
        except UserError as error:  # tidying up must not cost a night
            log.warning("%s The next night tries again.", error)
            return
        record.unlink()


def _close_mlflow_runs(workspace: Workspace, owner: LockOwner) -> None:
    """Runs of that very process that still say RUNNING; publishing the round opens its own run again."""
    client = MlflowClient(tracking_uri(workspace.root))
    campaign = campaign_id(workspace.root)
    experiments = client.search_experiments(filter_string=f"tags.`gleaner.campaign` = '{campaign}'")
    ids = [experiment.experiment_id for experiment in experiments]
    run_filter = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` = '{owner.identity}'"
    for run in client.search_runs(ids, run_filter) if ids else ():
        client.set_terminated(run.info.run_id, "KILLED")
        log.warning("MLflow run %s of %s is closed", run.info.run_name, owner)


def _close_flow_runs(owner: LockOwner) -> None:
    open_run_ids = (
        set(owner.notes.get(_FLOW_RUNS_NOTE, "").split()) - _current_flow_runs()
    )  # a run that is rescheduled keeps its id
    for text in open_run_ids:
        _close_flow_run(UUID(text), f"{owner} was killed")


def _current_flow_runs() -> set[str]:
    """This night's, and that of the campaign it may be one of."""
    return {text for text in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if text}


def _close_flow_run(run_id: UUID, reason: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:  # of another server
            return
        if state is None or state.type in _OPEN_STATES:
            client.set_flow_run_state(run_id, Crashed(message=reason), force=True)
        elif state.type == StateType.CANCELLING:
            client.set_flow_run_state(run_id, Cancelled(message=reason), force=True)
