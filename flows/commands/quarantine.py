"""``gleaner quarantine``: what was refused at the door and why, and a second try for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.options import WorkspaceOption

if TYPE_CHECKING:
    from flows.labels.quarantine import Entry, State

quarantine = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Answers that were refused at the door.")
_NONE = "-"


@quarantine.command("list")
def show(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what is settled: taken in since, superseded by a newer answer, notes.")
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show the answers that wait for somebody, each with its reason."""
    from flows.labels.quarantine import read_entries, state_of
    from flows.workspaces import require_workspace
    from tasks.label_store import read_labels

    campaign = require_workspace(workspace)
    known = read_labels(campaign.labels).given
    states = [(entry, state_of(entry, known)) for entry in read_entries(campaign)]
    shown = [(entry, state) for entry, state in states if everything or state in ("open", "released")]
    console = Console()
    if shown:
        console.print(_table(shown))
    settled = len(states) - len(shown)
    waiting = sum(state == "open" for _, state in states)
    console.print(f"{waiting} waiting" + (f", {settled} settled (--all shows them)" if settled else "") + ".")
    if waiting:
        console.print("After a correction in the label tool nothing is left to do. After one in params.yaml run:")
        console.print("gleaner quarantine retry")


@quarantine.command()
def retry(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="As in the list.", show_default="all that wait")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Let suspicious answers pass: somebody looked, and they are right.")
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Send refused answers to the door again, as after a change of classes in params.yaml.

    What passes goes in with the next night.
    """
    from flows.labels.quarantine_retry import retry as once_more
    from flows.workspaces import night_lock, require_workspace

    campaign = require_workspace(workspace)
    with night_lock(campaign):
        retried = once_more(campaign, names or [], accept=accept)
    console = Console()
    for result in retried:
        style = "green" if result.passed else "yellow"
        verdict = result.verdict if result.passed else f"stays: {result.verdict}"
        console.print(f"{result.entry.name}: {escape(verdict)}", style=style, soft_wrap=True, highlight=False)
    passed = sum(result.passed for result in retried)
    console.print(f"{passed} of {len(retried)} answers pass." if retried else "Nothing waits.")
    if not accept and any(result.entry.kind == "suspicious" and not result.passed for result in retried):
        console.print("Suspicious ones pass with --accept, once somebody has looked at them.")


def _table(shown: "list[tuple[Entry, State]]") -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for header in ("file", "batch", "image", "annotator", "state"):
        table.add_column(header, no_wrap=header == "file", overflow="fold")
    table.add_column("reason", overflow="fold", ratio=2)
    linked = any(entry.link for entry, _ in shown)
    if linked:
        table.add_column("link", overflow="fold", ratio=1)
    for entry, state in shown:
        said = (entry.name, str(entry.batch), entry.image_id or _NONE, entry.annotator or _NONE, _word(entry, state))
        table.add_row(*map(escape, said), escape(entry.reason), *([escape(entry.link or _NONE)] if linked else []))
    return table


def _word(entry: "Entry", state: "State") -> str:
    return "suspicious" if state == "open" and entry.kind == "suspicious" else state
