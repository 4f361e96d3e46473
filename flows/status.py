"""``gleaner status``: read off the files, so it needs no server and no time."""

from rich.console import Console
from rich.markup import escape

from flows.code_digests import drifted_stages
from flows.deliveries import all_deliveries, read_delivery
from flows.ledger import all_ledgers
from flows.position import is_published, newest_round
from flows.tables import rounds_table
from tasks import files
from tasks.paths import Workspace


def print_status(workspace: Workspace, console: Console) -> None:
    """Rounds, open deliveries, refusals, what comes next, and a warning where Gleaner has changed."""
    ledgers = all_ledgers(workspace)
    if ledgers:
        console.print(rounds_table(ledgers))
    for delivery in all_deliveries(workspace):
        if delivery.state != "collected":
            console.print(
                f"Batch {delivery.batch}: {len(delivery.image_ids)} images, {delivery.state}, "
                f"put together {delivery.created_at}"
            )
    _print_refusals(workspace, console)
    console.print(f"Next: {_next_step(workspace)}")
    drifted = drifted_stages(workspace)
    if drifted:
        console.print(
            f"Gleaner's code has changed for {', '.join(drifted)}: the next round runs with it.",
            style="yellow",
        )


def _print_refusals(workspace: Workspace, console: Console) -> None:
    refusals = sorted(workspace.quarantine.glob("batch-*.json"))
    if not refusals:
        return
    console.print(f"Refused labels: {len(refusals)}, in {workspace.quarantine.name}/", style="yellow")
    newest = files.read_json(refusals[-1])
    console.print(f"  {escape(newest['where'])}: {escape(newest['reason'])}", soft_wrap=True)


def _next_step(workspace: Workspace) -> str:
    number = newest_round(workspace)
    if not is_published(workspace, number):
        return f"gleaner night derives round {number}."
    delivery = read_delivery(workspace, number + 1)
    if delivery is None or delivery.state == "prepared":
        return f"gleaner night offers batch {number + 1}, if anything is left to ask for."
    return f"gleaner night collects batch {number + 1} and derives round {number + 1}."
