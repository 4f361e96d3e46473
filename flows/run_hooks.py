"""Surround a run with logs, Prefect artifacts, notifications, cancellation and the clean-up of crashed runs.

Cancellation: Prefect only records that a run is to be cancelled; a worker polls for that and ends it. A run started by
cron or in a terminal polls for itself, and ends itself as a worker would: by SIGTERM.

Crashed runs: ``flows.workspace.run_lock`` writes a record of each crashed process to ``.gleaner/crashed_runs``: its
identity and its flow runs. The record is deleted when all its runs are closed. So runs of living processes are never
touched, and while a service is unavailable the record is kept for the next run.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from uuid import UUID

from mlflow import MlflowClient
from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Crashed

from flows.annotation.batches import label_supply_warning
from flows.monitoring.json_logging import json_logging
from flows.monitoring.notifications import Notification, notify
from flows.monitoring.prefect_artifacts import progress_artifact, publish_round_artifacts
from flows.monitoring.progress import format_duration
from flows.run_context import RunContext
from flows.runtime.process_env import tracking_uri
from flows.runtime.retries import translate_service_errors
from flows.tracking.mlflow_owner import CAMPAIGN_TAG, connect, require_tracked_owner
from flows.tracking.mlflow_run import PROCESS_TAG
from flows.workspace.git import campaign_id
from flows.workspace.lock import Lock, LockOwner, read_owner
from flows.workspace.owner import OwnerError, require_own_folder
from flows.workspace.promotion_log import last_decision
from flows.workspace.rounds import RunResult, all_ledgers
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

POLL_INTERVAL_S = 5.0
_cancellation_requested = threading.Event()
log = logging.getLogger(__name__)
_OPEN_STATES = (StateType.RUNNING, StateType.PENDING, StateType.PAUSED)
_FLOW_RUNS_NOTE = "flow_runs"


@contextmanager
def monitored(context: RunContext) -> Iterator[None]:
    """Log the run inside this block, show its progress, and begin with the warnings of the preflight checks."""
    with json_logging(context.workspace), progress_artifact(context.workspace):
        for warning in context.warnings:
            get_run_logger().warning("%s.", warning)
        yield


def report_result(context: RunContext, result: RunResult) -> None:
    """Log a one-line summary of the run, and notify when the label supply is low."""
    logger, workspace = get_run_logger(), context.workspace
    logger.info("%s", summary(workspace, result, time.monotonic() - context.started_s))
    try:
        warning = label_supply_warning(workspace, context.params, result)
    except UserError as error:  # the round is published; the doctor and the next run report this again
        logger.warning("%s", error)
        return
    if warning is not None:
        logger.warning("%s", warning)
        notify(Notification(workspace.root.name, result.round_number, "label_supply_low", warning))


def after_publish(workspace: Workspace, round_number: int) -> None:
    """Publish the round's Prefect artifacts, and notify if its teacher was refused as champion."""
    publish_round_artifacts(workspace, round_number)
    decision = last_decision(workspace, round_number)
    if decision is not None and decision.action == "refuse":
        notify(Notification(workspace.root.name, round_number, "promotion_refused", decision.reason))


def summary(workspace: Workspace, result: RunResult, seconds: float) -> str:
    """Describe a run in one line."""
    prefix = f"{workspace.root.name}: run finished in {format_duration(seconds)}"
    ledgers = all_ledgers(workspace)
    if result.outcome == "waiting_for_labels" or not ledgers:
        return f"{prefix}. Waiting for labels after round {result.round_number}."
    figures = ledgers[-1]["metrics"]
    delta = ""
    if len(ledgers) > 1:
        delta = f" ({figures['teacher']['mAP'] - ledgers[-2]['metrics']['teacher']['mAP']:+.1f})"
    return (
        f"{prefix}. Round {result.round_number}: {figures['labels']} labels, "
        f"teacher mAP {figures['teacher']['mAP']:.1f}{delta}. {result.message}"
    )


@contextmanager
def watch_for_cancellation() -> Iterator[None]:
    """Within the block, end this process within seconds after its flow run is cancelled."""
    if runtime.deployment.id is not None:  # its worker does that
        yield
        return
    stop_event = threading.Event()
    run_ids = {UUID(text) for text in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if text}
    # Prefect's settings belong to the context: without it, the thread would start a server of its own.
    poll = partial(copy_context().run, _poll_for_cancellation, run_ids, stop_event)
    threading.Thread(target=poll, name="cancellation", daemon=True).start()
    try:
        yield
    finally:
        stop_event.set()


def mark_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Set the state of a crashed run to cancelled, where a cancellation was requested (hook for crashed runs)."""
    del flow, state
    if _cancellation_requested.is_set():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message="Cancelled by a user."), force=True)


def _poll_for_cancellation(run_ids: set[UUID], stop_event: threading.Event) -> None:
    while not stop_event.wait(POLL_INTERVAL_S):
        try:
            with get_client(sync_client=True) as client:
                states = [client.read_flow_run(run_id).state for run_id in run_ids]
        except Exception as error:  # the API is unavailable for a moment, which is no reason to end the run
            log.debug("cannot poll for a cancellation: %s", error)
            continue
        if any(state is not None and state.type == StateType.CANCELLING for state in states):
            _cancellation_requested.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return


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


def require_owned_tracking(workspace: Workspace) -> None:
    """Refuse a run, before it does any work, whose campaign another folder goes on with by MLflow's record.

    Publishing asks again, so a run may begin while MLflow is unavailable.

    Raises:
        OwnerError: see ``flows.tracking.mlflow_owner.require_tracked_owner``.
    """
    try:
        with translate_service_errors("MLflow"):
            client = connect(workspace.root)
            if client is not None:
                require_tracked_owner(workspace, client, require_own_folder(workspace))
    except OwnerError:
        raise
    except UserError as error:
        log.warning("%s Whose campaign this is, is asked again when the round is published.", error)


def _close_mlflow_runs(workspace: Workspace, owner: LockOwner) -> None:
    """Terminate the process's runs that are RUNNING; publishing its round again reopens the run."""
    client = MlflowClient(tracking_uri(workspace.root))
    campaign = campaign_id(workspace.root)
    experiments = client.search_experiments(filter_string=f"tags.`{CAMPAIGN_TAG}` = '{campaign}'")
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
