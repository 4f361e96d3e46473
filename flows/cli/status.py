"""Show the state of a campaign.

``gleaner status``: read off the files, so it needs no server and no time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.annotation.batches import all_annotation_batches, image_states, lease_expires_at, open_images
from flows.annotation.deliver import CAMPAIGN_COMPLETE, has_pending_delivery, held_back, held_message
from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.quarantine import entry_state, read_entries
from flows.workspace.dvc import stale_stages
from flows.workspace.rounds import all_ledgers, is_published, newest_round
from tasks.data.label_store import LabelStore, read_labels
from tasks.data.paths import Workspace
from tasks.params import Params, load_params
from tasks.reporting.stopping import CONSIDER_STOPPING, minutes_per_point

_MISSING = "-"
_HEADERS = (
    "round", "labels", "boxes", "teacher\nmAP", "student\nmAP", "mean\nconf.", "weights\nentropy", "\noverlap",
    "corr.\nDWA", "corr.\nequal", "weights\nused",
)  # fmt: skip
_CAPTION = (
    "mAP in percent; corr.: rank correlation of the score with the realised\n"
    "loss on held-out pairs, with DWA's weights and with equal ones"
)


def rounds_table(ledgers: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of rounds, one line per round."""
    table = Table(box=SIMPLE_HEAD, padding=0, caption=_CAPTION, caption_justify="left")
    for header in _HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for ledger in ledgers:
        figures = ledger["metrics"]
        table.add_row(
            str(ledger["round"]),
            str(figures["labels"]),
            str(figures["boxes"]),
            _format_number(figures["teacher"]["mAP"], 1),
            _format_number(figures["student"]["mAP"], 1),
            *(_format_number(figures["mean_weights"][name], 2) for name in ("confidence", "entropy", "overlap")),
            _format_number(figures["spearman_dwa"], 2),
            _format_number(figures["spearman_equal"], 2),
            str(figures["acquisition_weights"]),
        )
    return table


def _format_number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"


def print_status(workspace: Workspace, console: Console) -> None:
    """Rounds, open deliveries, refusals, what comes next, and a warning where Gleaner has changed."""
    ledgers = all_ledgers(workspace)
    if ledgers:
        console.print(rounds_table(ledgers))
    deliveries, store = (
        all_annotation_batches(workspace),
        read_labels(workspace.labels),
    )  # thousands of labels: read once
    params = load_params(workspace.params)
    _print_images(deliveries, store, params.provider.lease_days, console)
    _print_rejections(workspace, store, console)
    is_open = any(open_images(delivery, store) for delivery in deliveries)
    if ledgers:
        _print_stopping_advice(ledgers[-1]["metrics"], console)
    console.print(f"Next: {_next_step(workspace, params, is_open=is_open)}")
    stale = stale_stages(workspace)
    if stale:
        console.print(
            f"Gleaner's code has changed for {', '.join(stale)}: the next round runs with it.",
            style="yellow",
        )


def _print_images(
    deliveries: Sequence[AnnotationBatch], store: LabelStore, lease_days: float, console: Console
) -> None:
    """Print the states of selected images, and the batches that annotators have."""
    states = image_states(deliveries, store)
    if states.total():
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        console.print(f"Picked images: {counts}", highlight=False)
    for delivery in deliveries:
        num_open = len(open_images(delivery, store))
        if not num_open:
            continue
        until = lease_expires_at(delivery, lease_days).isoformat(timespec="minutes")
        lease = "not delivered yet" if delivery.state == "prepared" else f"delivered, leased until {until}"
        counts = f"{num_open} of {len(delivery.image_ids)} images open"
        console.print(f"Batch {delivery.batch}: {counts}, {lease}", soft_wrap=True, highlight=False)


def _print_rejections(workspace: Workspace, store: LabelStore, console: Console) -> None:
    """Print the rejections that need a person; most are settled by a newer annotation."""
    answers = store.all_answers
    waiting = [entry for entry in read_entries(workspace) if entry_state(entry, answers) == "open"]
    if waiting:
        console.print(f"Refused labels: {len(waiting)}, shown by gleaner quarantine list", style="yellow")
        last = waiting[-1]
        console.print(f"  {escape(last.item)}: {escape(last.reason)}", soft_wrap=True)


def _print_stopping_advice(figures: Mapping[str, Any], console: Console) -> None:
    """Print whether further labels still pay, in yellow where they do not."""
    stopping = figures["stopping"]
    is_over = stopping["advice"] == CONSIDER_STOPPING
    text = f"{'Consider stopping' if is_over else 'Go on labeling'}: {stopping['reason']}"
    if stopping["minutes_per_point"] is not None:
        text += f"; {minutes_per_point(stopping)} by the trend"
    console.print(f"{text}.", style="yellow" if is_over else None, soft_wrap=True, highlight=False)


def _next_step(workspace: Workspace, params: Params, *, is_open: bool) -> str:
    number = newest_round(workspace)
    if not is_published(workspace, number):
        return f"gleaner run derives round {number}."
    if has_pending_delivery(workspace, params, number):
        return f"gleaner run offers batch {number + 1}, if anything is left to ask for."
    if not is_open and (held := held_back(workspace, params, number)):
        return f"nothing. {held_message(number + 1, held)}"
    if not is_open:
        return f"nothing: {CAMPAIGN_COMPLETE[0].lower()}{CAMPAIGN_COMPLETE[1:]}"
    return f"gleaner run collects new labels as batch {number + 1} and derives round {number + 1}."
