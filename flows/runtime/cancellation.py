"""Let the Cancel button in Prefect's UI end a run that no Prefect worker has started.

Prefect only records that a run is to be cancelled; a worker polls for that and ends it. A run started by cron or in a
terminal polls for itself, and ends itself as a worker would: by SIGTERM.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

POLL_INTERVAL_S = 5.0
_cancellation_requested = threading.Event()
log = logging.getLogger(__name__)


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
