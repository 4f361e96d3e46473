"""``gleaner reproduce``."""

import json
from dataclasses import asdict
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
    from flows.provenance.reproduce import Reproduction

_EXIT_DIFFERENT = 1


def reproduce(
    tag: Annotated[str, typer.Argument(metavar="ROUND", help="As round-0003.")],
    into: Annotated[
        Path | None,
        typer.Option(help="New folder to make it in.", show_default="one below .gleaner, removed if all is the same"),
    ] = None,
    tolerance_points: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Percent points of mAP, on another machine or with other packages."),
    ] = 2.0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Make a round again from its labels, in a clone of its own, and compare every digest.

    Works in a fresh clone: data comes from the DVC remote. Takes as long as the round took.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.provenance.reproduce import reproduce_round

    console = Console(stderr=as_json)
    result = reproduce_round(
        campaign, tag, into, tolerance_points=tolerance_points,
        on_line=lambda line: console.print(escape(line), style="dim", soft_wrap=True, highlight=False),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_document(result), indent=2, ensure_ascii=False))
    else:
        _print_table(result, console)
    if not result.is_reproduced:
        raise typer.Exit(_EXIT_DIFFERENT)


def _document(result: "Reproduction") -> dict[str, object]:
    return {
        **asdict(result), "folder": str(result.folder), "is_bit_identical": result.is_bit_identical, "is_reproduced": result.is_reproduced
    }  # fmt: skip


def _print_table(result: "Reproduction", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("stage", "output", "recorded", "made", ""):
        table.add_column(header)
    for output in result.outputs:
        verdict = "[green]same[/]" if output.is_same else "[red]differs[/]"
        table.add_row(output.stage, output.path, output.recorded[:12], (output.reproduced or "-")[:12], verdict)
    console.print(table)
    for difference in result.differences:
        console.print(escape(difference), style="yellow", soft_wrap=True, highlight=False)
    console.print(escape(_format_result(result)), soft_wrap=True, highlight=False)


def _format_result(result: "Reproduction") -> str:
    maps = f"mAP {result.reproduced_map:.4f}, recorded {result.recorded_map:.4f}"
    if result.is_bit_identical:
        return f"Reproduced to the byte: {maps}."
    if not result.differences:
        return f"Not reproduced, though machine, packages and code are the same: {maps}. Look in {result.folder}"
    verdict = "Reproduced within the tolerance" if result.is_reproduced else "Not reproduced even within the tolerance"
    return f"{verdict} of {result.tolerance_points:g} points, not to the byte: {maps}. Look in {result.folder}"
