"""``gleaner quarantine``: list the rejected annotations, and validate them again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import WorkspaceOption

if TYPE_CHECKING:
    from flows.annotation.quarantine import EntryState, QuarantineEntry

quarantine = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Annotations that were rejected by validation."
)
_MISSING = "-"


@quarantine.command("list")
def list_entries(
    show_all: Annotated[
        bool,
        typer.Option("--all", help="Also closed ones: imported since, superseded by a newer one, notes."),
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the rejected annotations that need a person, each with its reason."""
    from flows.annotation.quarantine import entry_state, read_entries
    from flows.workspace.run_lock import require_workspace
    from tasks.data.label_store import read_labels

    campaign = require_workspace(workspace)
    annotations = read_labels(campaign.labels).all_annotations
    states = [(entry, entry_state(entry, annotations)) for entry in read_entries(campaign)]
    shown = [(entry, state) for entry, state in states if show_all or state in ("open", "released")]
    console = Console()
    if shown:
        console.print(_table(shown))
    num_closed = len(states) - len(shown)
    num_open = sum(state == "open" for _, state in states)
    closed = f", {num_closed} closed (--all shows them)" if num_closed else ""
    console.print(f"{num_open} open{closed}.")
    if num_open:
        console.print("A corrected annotation is collected from the label tool by itself.")
        console.print("After a correction in params.yaml run: gleaner quarantine retry")


@quarantine.command()
def retry(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="As in the list.", show_default="all open ones")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Accept suspicious annotations too, after a person has checked them.")
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Validate rejected annotations again, for example after a class was added to params.yaml.

    The next run imports those that are valid now.
    """
    from flows.annotation.quarantine import retry as retry_entries
    from flows.workspace.run_lock import require_workspace, run_lock

    campaign = require_workspace(workspace)
    with run_lock(campaign):
        results = retry_entries(campaign, names or [], approve=approve)
    console = Console()
    for result in results:
        style = "green" if result.accepted else "yellow"
        message = result.message if result.accepted else f"rejected: {result.message}"
        console.print(f"{result.entry.name}: {escape(message)}", style=style, soft_wrap=True, highlight=False)
    num_accepted = sum(result.accepted for result in results)
    console.print(f"{num_accepted} of {len(results)} accepted." if results else "No annotation is open.")
    if not approve and any(result.entry.kind == "suspicious" and not result.accepted for result in results):
        console.print("Run with --approve to accept suspicious annotations, after a person has checked them.")


def _table(shown: "list[tuple[QuarantineEntry, EntryState]]") -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for header in ("file", "batch", "image", "annotator", "state"):
        table.add_column(header, no_wrap=header == "file", overflow="fold")
    table.add_column("reason", overflow="fold", ratio=2)
    has_links = any(entry.url for entry, _ in shown)
    if has_links:
        table.add_column("url", overflow="fold", ratio=1)
    for entry, state in shown:
        cells = (
            entry.name,
            str(entry.batch),
            entry.image_id or _MISSING,
            entry.annotator or _MISSING,
            _format_state(entry, state),
        )
        table.add_row(
            *map(escape, cells), escape(entry.reason), *([escape(entry.url or _MISSING)] if has_links else [])
        )
    return table


def _format_state(entry: "QuarantineEntry", state: "EntryState") -> str:
    return "suspicious" if state == "open" and entry.kind == "suspicious" else state
