"""Cancel in Prefect's UI ends a night that no worker of Prefect's has started.

Prefect only writes down that a run shall be cancelled; a worker would look and end it. A night from cron or from a
terminal looks for itself, and ends itself the way a worker would: by SIGTERM.
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
    """End this process within seconds of somebody cancelling its flow run, while in the block."""
    if runtime.deployment.id is not None:  # a worker looks after it
        yield
        return
    stop_event = threading.Event()
    run_ids = {UUID(text) for text in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if text}
    poll = partial(
        copy_context().run, _poll_for_cancellation, run_ids, stop_event
    )  # Prefect's settings are of the context: without it, a
    threading.Thread(target=poll, name="cancellation", daemon=True).start()  # thread would start a server of its own
    try:
        yield
    finally:
        stop_event.set()


def mark_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for crashed runs: the crash was the cancellation that somebody asked for."""
    del flow, state
    if _cancellation_requested.is_set():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message="Cancelled by a person."), force=True)


def _poll_for_cancellation(run_ids: set[UUID], stop_event: threading.Event) -> None:
    while not stop_event.wait(POLL_INTERVAL_S):
        try:
            with get_client(sync_client=True) as client:
                states = [client.read_flow_run(run_id).state for run_id in run_ids]
        except Exception as error:  # the API is away for a moment; the night must not end for that
            log.debug("cannot look for a cancellation: %s", error)
            continue
        if any(state is not None and state.type == StateType.CANCELLING for state in states):
            _cancellation_requested.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return
