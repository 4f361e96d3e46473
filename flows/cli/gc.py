"""``gleaner gc``: delete unused data from DVC's cache and remote."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, WorkspaceOption
from flows.runtime.process_env import prepare_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.workspace.gc import Garbage


def gc(
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Delete, or only list what would be deleted.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Also in the default DVC remote.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Delete stored data that no round, champion, candidate or pending batch uses; lists it first.

    These are outputs of stages that were interrupted or replaced. Every tag can still be checked out.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.workspace.gc import find_garbage, remove_garbage, to_json
    from flows.workspace.run_lock import run_lock

    console = Console(stderr=as_json)
    with run_lock(campaign):
        garbage = find_garbage(campaign, remote=remote)
        _print_table(garbage, console)
        if as_json:
            typer.echo(to_json(garbage))
        if yes:
            remove_garbage(campaign, garbage)
    total = sum(group.size_bytes for group in garbage)
    message = f"Freed {_mib(total)}." if yes else f"Nothing was deleted. To free {_mib(total)}: gleaner gc --yes"
    console.print(message if garbage else "All stored data is in use.", highlight=False)


def _print_table(garbage: "Sequence[Garbage]", console: Console) -> None:
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
