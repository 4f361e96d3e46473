"""Command ``gleaner reproduce``."""

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
    tag: Annotated[str, typer.Argument(metavar="ROUND", help="Tag of the round, such as round-0003.")],
    into: Annotated[
        Path | None,
        typer.Option(
            help="New folder for the clone.", show_default="one below .gleaner, removed if all outputs are identical"
        ),
    ] = None,
    tolerance_points: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Allowed difference of mAP in percent points, in another environment."),
    ] = 2.0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Run a round again from its labels in a separate clone, and compare the digests of all outputs.

    Also works in a fresh clone of the campaign: data comes from the DVC remote. Takes as long as the round took. The
    exit code is 1 where outputs differ; in another environment, only where the mAP differs by more than the tolerance.
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
    document = asdict(result)
    return {
        "round": document.pop("round_number"),
        **document,
        "folder": str(result.folder),
        "is_bit_identical": result.is_bit_identical,
        "is_reproduced": result.is_reproduced,
    }


def _print_table(result: "Reproduction", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("stage", "output", "recorded MD5", "reproduced MD5", ""):
        table.add_column(header)
    for output in result.outputs:
        state = "[green]same[/]" if output.is_same else "[red]differs[/]"
        reproduced = (output.reproduced_md5 or "-")[:12]
        table.add_row(output.stage, output.path, output.recorded_md5[:12], reproduced, state)
    console.print(table)
    for difference in result.environment_differences:
        console.print(escape(difference), style="yellow", soft_wrap=True, highlight=False)
    console.print(escape(_summary(result)), soft_wrap=True, highlight=False)


def _summary(result: "Reproduction") -> str:
    maps = f"mAP is {result.reproduced_map:.4f}, recorded is {result.recorded_map:.4f}"
    if result.is_bit_identical:
        return f"All outputs are identical: {maps}."
    clone = f"The clone is {result.folder}"
    if not result.environment_differences:
        return f"Not reproduced: outputs differ in the same environment. {maps}. {clone}"
    verdict = "Reproduced" if result.is_reproduced else "Not reproduced"
    within = "within" if result.is_reproduced else "beyond"
    return (
        f"{verdict}: outputs differ, mAP {within} the tolerance of {result.tolerance_points:g} points. {maps}. {clone}"
    )
