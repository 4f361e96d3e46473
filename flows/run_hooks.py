"""What a run reports besides its result: logs, Prefect artifacts, a one-line summary and notifications."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.logging import get_run_logger

from flows.annotation.label_supply import label_supply_warning
from flows.monitoring.json_logging import json_logging
from flows.monitoring.notifications import Notification, notify, notify_on_failure
from flows.monitoring.prefect_artifacts import progress_artifact, publish_round_artifacts
from flows.monitoring.progress import format_duration
from flows.preflight.quick import require_ready
from flows.workspace.promotion_log import last_decision
from flows.workspace.rounds import RunResult, all_ledgers
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError


@dataclass(frozen=True)
class RunHooks:
    """Checks before a run and reports after it."""

    workspace: Workspace
    started_s: float

    def before_run(self) -> None:
        """Run the quick preflight checks before any work, and log their warnings.

        Raises:
            UserError: names every failed check.
        """
        for warning in require_ready(self.workspace):
            get_run_logger().warning("%s.", warning)

    def after_run(self, result: RunResult) -> RunResult:
        """Log a one-line summary, notify when the label supply is low, and return the result."""
        log = get_run_logger()
        log.info("%s", summary(self.workspace, result, time.monotonic() - self.started_s))
        try:
            warning = label_supply_warning(self.workspace, load_params(self.workspace.params), result)
        except UserError as error:  # the round is published; the doctor and the next run report this again
            log.warning("%s", error)
            warning = None
        if warning is not None:
            log.warning("%s", warning)
            notify(Notification(self.workspace.root.name, result.round_number, "label_supply_low", warning))
        return result


@contextmanager
def monitored(workspace: Workspace) -> Iterator[RunHooks]:
    """Log the run inside this block, show its progress, and notify if it fails."""
    with notify_on_failure(workspace), json_logging(workspace), progress_artifact(workspace):
        yield RunHooks(workspace, time.monotonic())


def after_publish(workspace: Workspace, round_number: int) -> None:
    """Publish the round's Prefect artifacts, and notify if its teacher was refused as champion."""
    publish_round_artifacts(workspace, round_number)
    decision = last_decision(workspace, round_number)
    if decision is not None and decision.action == "refuse":
        notify(Notification(workspace.root.name, round_number, "promotion_refused", decision.reason))


def summary(workspace: Workspace, result: RunResult, seconds: float) -> str:
    """Describe a run in one line."""
    prefix = f"{workspace.root.name}: night over in {format_duration(seconds)}"
    ledgers = all_ledgers(workspace)
    if result.outcome == "waiting_for_labels" or not ledgers:
        return f"{prefix}. Waiting for labels; round {result.round_number} stands."
    figures = ledgers[-1]["metrics"]
    delta = ""
    if len(ledgers) > 1:
        delta = f" ({figures['teacher']['mAP'] - ledgers[-2]['metrics']['teacher']['mAP']:+.1f})"
    return (
        f"{prefix}. Round {result.round_number}: {figures['labels']} labels, "
        f"teacher mAP {figures['teacher']['mAP']:.1f}{delta}. {result.message}"
    )
