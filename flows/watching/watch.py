"""What the people who run a campaign get of a night: logs, pages, a summary in one line, and an alarm where needed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.logging import get_run_logger

from flows.doctor.before_night import require_fit
from flows.labels.shortage import running_dry
from flows.position import NightResult
from flows.records.ledger import all_ledgers
from flows.records.promotion_log import last_decision
from flows.watching.alarm import alarmed
from flows.watching.artifacts import progress_shown, show_round
from flows.watching.notify import Notice, notify
from flows.watching.stage_progress import in_words
from flows.watching.structured_log import told_as_json
from tasks.errors import UserError
from tasks.params import load_params
from tasks.paths import Workspace


@dataclass(frozen=True)
class Watch:
    """One night under observation."""

    workspace: Workspace
    started_s: float

    def begun(self) -> None:
        """Refuse a night that could not end well, before any work; say what is not well but good enough.

        Raises:
            UserError: names everything that has to be mended.
        """
        for warning in require_fit(self.workspace):
            get_run_logger().warning("%s.", warning)

    def ended(self, result: NightResult) -> NightResult:
        """Say in one line how the night went, and tell somebody if labels run out; hands the result through."""
        log = get_run_logger()
        log.info("%s", summary(self.workspace, result, time.monotonic() - self.started_s))
        try:
            dry = running_dry(self.workspace, load_params(self.workspace.params), result)
        except UserError as error:  # the round stands; the doctor and the next night say it again
            log.warning("%s", error)
            dry = None
        if dry is not None:
            log.warning("%s", dry)
            notify(Notice(self.workspace.root.name, result.round_number, "labels_running_dry", dry))
        return result


@contextmanager
def watched(workspace: Workspace) -> Iterator[Watch]:
    """Log, show and, if it fails, report the night inside this block."""
    with alarmed(workspace), told_as_json(workspace), progress_shown(workspace):
        yield Watch(workspace, time.monotonic())


def show_published(workspace: Workspace, round_number: int) -> None:
    """Show a round that was just published, and tell somebody if its teacher was refused as champion."""
    show_round(workspace, round_number)
    decision = last_decision(workspace, round_number)
    if decision is not None and decision.action == "refuse":
        notify(Notice(workspace.root.name, round_number, "promotion_refused", decision.why))


def summary(workspace: Workspace, result: NightResult, seconds: float) -> str:
    """A night in one line."""
    took = f"{workspace.root.name}: night over in {in_words(seconds)}"
    ledgers = all_ledgers(workspace)
    if result.outcome == "waiting" or not ledgers:
        return f"{took}. Waiting for labels; round {result.round_number} stands."
    figures = ledgers[-1]["figures"]
    gained = ""
    if len(ledgers) > 1:
        gained = f" ({figures['teacher']['mAP'] - ledgers[-2]['figures']['teacher']['mAP']:+.1f})"
    return (
        f"{took}. Round {result.round_number}: {figures['labels']} labels, "
        f"teacher mAP {figures['teacher']['mAP']:.1f}{gained}. {result.message}"
    )
