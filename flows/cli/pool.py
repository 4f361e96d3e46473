"""``gleaner pool``: the unlabeled images of a campaign."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import WorkspaceOption

if TYPE_CHECKING:
    from tasks.data.pool_diff import PoolDiff

pool = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The images a campaign chooses from.")
_MAX_LISTED = 10
_EXIT_LABELED_IMAGES_LOST = 1


@pool.callback()
def _group() -> None:
    """Keep ``sync`` a command of its own: Typer would make a single one the group itself."""


@pool.command()
def sync(workspace: WorkspaceOption = Path()) -> None:
    """Add new images from pool.images_uri to the pool, and list what changed or was removed there.

    Exit code 1: labeled images, or images offered for labeling, were removed or replaced.
    """
    from flows.pool_sync import sync_pool
    from flows.runtime.process_env import prepare_environment
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    changes = sync_pool(campaign)
    console = Console()
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
