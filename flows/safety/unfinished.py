"""What a killed night left open at MLflow and Prefect, closed as soon as they answer.

A dead night is remembered by a file in ``.gleaner/unfinished``, which says which process it was and what it had
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

from flows.environment import tracking_uri
from flows.records.tracking import PROCESS
from flows.safety.causes import named_causes
from flows.safety.locks import Held, Holder, read_holder
from flows.vcs import campaign_id
from tasks.errors import UserError
from tasks.paths import Workspace

_OPEN = (StateType.RUNNING, StateType.PENDING, StateType.PAUSED)
_FLOW_RUNS = "flow_runs"
log = logging.getLogger(__name__)


def note_flow_runs(lock: Held) -> None:
    """Write into the lock which runs of Prefect this night is, for whoever comes after its death."""
    lock.note(**{_FLOW_RUNS: " ".join(sorted(_own_flow_runs()))})


def close_unfinished(workspace: Workspace) -> None:
    """Close what dead nights of this workspace left open; only with the night's lock in hand."""
    for record in sorted(workspace.unfinished.glob("*.json")):
        dead = read_holder(record)
        try:
            with named_causes("what a killed night left open"):
                if dead is not None:
                    _close_mlflow_runs(workspace, dead)
                    _close_flow_runs(dead)
        except UserError as error:  # tidying up must not cost a night
            log.warning("%s The next night tries again.", error)
            return
        record.unlink()


def _close_mlflow_runs(workspace: Workspace, dead: Holder) -> None:
    """Runs of that very process that still say RUNNING; publishing the round opens its own run again."""
    client = MlflowClient(tracking_uri(workspace.root))
    campaign = campaign_id(workspace.root)
    experiments = client.search_experiments(filter_string=f"tags.`gleaner.campaign` = '{campaign}'")
    ids = [experiment.experiment_id for experiment in experiments]
    ours = f"attributes.status = 'RUNNING' and tags.`{PROCESS}` = '{dead.identity}'"
    for run in client.search_runs(ids, ours) if ids else ():
        client.set_terminated(run.info.run_id, "KILLED")
        log.warning("MLflow run %s of %s is closed", run.info.run_name, dead)


def _close_flow_runs(dead: Holder) -> None:
    left = set(dead.notes.get(_FLOW_RUNS, "").split()) - _own_flow_runs()  # a run that is rescheduled keeps its id
    for text in left:
        _close_flow_run(UUID(text), f"{dead} was killed")


def _own_flow_runs() -> set[str]:
    """This night's, and that of the campaign it may be one of."""
    return {text for text in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if text}


def _close_flow_run(run_id: UUID, why: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:  # of another server
            return
        if state is None or state.type in _OPEN:
            client.set_flow_run_state(run_id, Crashed(message=why), force=True)
        elif state.type == StateType.CANCELLING:
            client.set_flow_run_state(run_id, Cancelled(message=why), force=True)
