"""Commands ``gleaner pool``, ``quarantine`` and ``gc``: the images, annotations and stored data of a campaign."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, TrustOption, WorkspaceOption, look_at
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment

if TYPE_CHECKING:
    from flows.annotation.quarantine import EntryState, QuarantineEntry
    from flows.workspace.dvc_cache import Garbage
    from tasks.data.pool_diff import PoolDiff

pool = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The images a campaign chooses from.")
_MAX_LISTED = 10
_EXIT_LABELED_IMAGES_LOST = 1
quarantine = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Annotations that were rejected by validation."
)
_MISSING = "-"


@pool.callback()
def _group() -> None:
    """Keep ``sync`` a command of its own: Typer would make a single one the group itself."""


@pool.command()
def sync(workspace: WorkspaceOption = Path()) -> None:
    """Add new images from pool.images_uri to the pool, and list what changed or was removed there.

    Exit code 1: labeled images, or images offered for labeling, were removed or replaced.
    """
    from flows.pool_sync import sync_pool
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    changes = sync_pool(campaign)
    console = SafeConsole()
    console.print(changes_table(changes))
    for entry in changes.missing:
        console.print(f"[red]{escape(entry.item)}: {escape(entry.reason)}[/red]", soft_wrap=True)
    if changes.missing:
        console.print("Restore these files. Their labels are kept, and used again then.")
        sys.exit(_EXIT_LABELED_IMAGES_LOST)


def changes_table(changes: "PoolDiff") -> Table:
    """Return a table with one row for each kind of change."""
    rejected = [f"{entry.item} ({entry.reason})" for entry in changes.rejected]
    lines: list[tuple[str, int, Sequence[str]]] = [
        ("added", len(changes.added), changes.added),
        ("changed", len(changes.changed), changes.changed),
        ("moved", len(changes.moved), changes.moved),
        ("vanished", len(changes.removed), changes.removed),
        ("lost, with labels", len(changes.missing), [entry.item for entry in changes.missing]),
        ("set aside", len(rejected), rejected),
        ("exact copies", changes.duplicates, ()),
        ("copies of validation images", changes.heldout_duplicates, ()),
    ]
    table = Table("what", "images", "which", box=SIMPLE_HEAD)
    for kind, count, names in lines:
        more = ["..."] if len(names) > _MAX_LISTED else []
        table.add_row(kind, str(count), escape(", ".join([*names[:_MAX_LISTED], *more])))
    return table


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
    annotations = read_labels(campaign.labels).all_answers
    states = [(entry, entry_state(entry, annotations)) for entry in read_entries(campaign)]
    shown = [(entry, state) for entry, state in states if show_all or state in ("open", "released")]
    console = SafeConsole()
    if shown:
        console.print(_entries_table(shown))
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
    console = SafeConsole()
    for result in results:
        style = "green" if result.accepted else "yellow"
        message = result.message if result.accepted else f"rejected: {result.message}"
        console.print(f"{result.entry.name}: {escape(message)}", style=style, soft_wrap=True, highlight=False)
    num_accepted = sum(result.accepted for result in results)
    console.print(f"{num_accepted} of {len(results)} accepted." if results else "No annotation is open.")
    if not approve and any(result.entry.kind == "suspicious" and not result.accepted for result in results):
        console.print("Run with --approve to accept suspicious annotations, after a person has checked them.")


def _entries_table(shown: "list[tuple[QuarantineEntry, EntryState]]") -> Table:
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


def gc(
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Delete, or only list what would be deleted.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Also in the default DVC remote.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
    trust_campaign: TrustOption = False,
) -> None:
    """Delete stored data that no round, champion, candidate or pending batch uses; lists it first.

    These are outputs of stages that were interrupted or replaced. Every tag can still be checked out.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    from flows.workspace.dvc_cache import find_garbage, remove_garbage, to_json
    from flows.workspace.owner import require_own_folder
    from flows.workspace.run_lock import run_lock

    console = SafeConsole(stderr=as_json)
    with run_lock(campaign):
        if remote:  # which this folder may share with the one it is a copy of
            require_own_folder(campaign)
        garbage = find_garbage(campaign, remote=remote)
        _print_garbage(garbage, console)
        if as_json:
            typer.echo(to_json(garbage))
        if yes:
            remove_garbage(campaign, garbage)
    total = sum(group.size_bytes for group in garbage)
    message = f"Freed {_mib(total)}." if yes else f"Nothing was deleted. To free {_mib(total)}: gleaner gc --yes"
    console.print(message if garbage else "All stored data is in use.", highlight=False)


def _print_garbage(garbage: "Sequence[Garbage]", console: Console) -> None:
    if not garbage:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("location", "former path", "objects", "size"):
        table.add_column(header, justify="right" if header in ("objects", "size") else "left")
    for group in garbage:
        table.add_row(group.location, escape(group.path), str(len(group.md5s)), _mib(group.size_bytes))
    table.add_section()
    objects = sum(len(group.md5s) for group in garbage)
    table.add_row("total", "", str(objects), _mib(sum(group.size_bytes for group in garbage)))
    console.print(table)


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
