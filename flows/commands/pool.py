"""``gleaner pool``: what the campaign chooses from."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.options import WorkspaceOption

if TYPE_CHECKING:
    from tasks.pool_changes import PoolChanges

pool = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The images a campaign chooses from.")
_SHOWN = 10
_ALARM = 1


@pool.callback()
def _group() -> None:
    """Keep ``sync`` a command of its own: Typer would make a single one the group itself."""


@pool.command()
def sync(workspace: WorkspaceOption = Path()) -> None:
    """Take in images that arrived in pool.source, and tell what changed or vanished there.

    Exit code 1: images that people labeled, or are asked to label, are gone or were replaced.
    """
    from flows.environment import prepare_environment
    from flows.pool import sync_pool
    from flows.workspaces import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    changes = sync_pool(campaign)
    console = Console()
    console.print(changes_table(changes))
    for entry in changes.lost:
        console.print(f"[red]{escape(entry.where)}: {escape(entry.reason)}[/red]", soft_wrap=True)
    if changes.lost:
        console.print("Put the bytes back where they were. Their labels are safe, and wait until then.")
        sys.exit(_ALARM)


def changes_table(changes: "PoolChanges") -> Table:
    """One line for each kind of change."""
    aside = [f"{entry.where} ({entry.reason})" for entry in changes.set_aside]
    lines: list[tuple[str, int, Sequence[str]]] = [
        ("added", len(changes.added), changes.added),
        ("changed", len(changes.changed), changes.changed),
        ("moved", len(changes.moved), changes.moved),
        ("vanished", len(changes.vanished), changes.vanished),
        ("lost, with labels", len(changes.lost), [entry.where for entry in changes.lost]),
        ("set aside", len(aside), aside),
        ("exact copies", changes.duplicates, ()),
        ("copies of validation images", changes.held_out, ()),
    ]
    table = Table("what", "images", "which", box=SIMPLE_HEAD)
    for what, count, names in lines:
        more = ["..."] if len(names) > _SHOWN else []
        table.add_row(what, str(count), escape(", ".join([*names[:_SHOWN], *more])))
    return table
