"""Command ``gleaner shadow``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.cli.data import changes_table
from flows.cli.options import JsonOption, WorkspaceOption
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment

_CLEAR_P_VALUE = 0.01


def shadow(
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="Folder or s3:// prefix of what production sees.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for page, table and summary.")],
    challenger: Annotated[
        str | None,
        typer.Option(
            help="Model beside the champion: name/3 or round-0003.", show_default="the newest, else the champion before"
        ),
    ] = None,
    add: Annotated[
        int, typer.Option(min=0, help="Images most worth a label that enter the pool, for the next batch.")
    ] = 0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Run champion and challenger over a stream of images: where they disagree, and how far it is from the pool."""
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.shadow import PAGE
    from flows.shadow import shadow as compare
    from flows.workspace.trust import trust

    trust(campaign.root)
    console = SafeConsole(stderr=as_json)
    result = compare(
        campaign, stream, folder.absolute(), challenger, add,
        on_line=lambda line: console.print(escape(line), style="dim", soft_wrap=True, highlight=False),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result.document, indent=2, ensure_ascii=False))
    else:
        _print_document(result.document, console)
        console.print(escape(f"Page: {folder / PAGE}"), soft_wrap=True, highlight=False)
    if result.added is not None:
        console.print(changes_table(result.added))


def _print_document(document: dict[str, Any], console: SafeConsole) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("class", "boxes an image, pool", "boxes an image, stream"):
        table.add_column(header, justify="left" if header == "class" else "right")
    for name, boxes in document["boxes_per_image_by_class"].items():
        table.add_row(escape(name), f"{boxes['pool']:.2f}", f"{boxes['stream']:.2f}")
    console.print(table)
    low, high = document["unlike_the_pool_interval"]
    verdict = "the stream has drifted" if document["drift_p_value"] < _CLEAR_P_VALUE else "no drift is shown"
    lines = (
        f"{document['champion']} is champion, {document['challenger']} challenges.",
        f"{document['unlike_the_pool']} of {document['images']} images are unlike the pool ({low:.0%} to {high:.0%}), "
        f"where chance explains {document['expected_frac']:.0%}: {verdict}.",
        f"The models disagree about {document['mean_disagreement_objects']:.2f} objects an image.",
        f"{document['known']} images are the campaign's already, {len(document['set_aside'])} were set aside.",
        *document["set_aside"],
    )
    console.print(*map(escape, lines), sep="\n", soft_wrap=True, highlight=False)
