"""Command ``gleaner lineage``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.options import JsonOption, WorkspaceOption
from flows.runtime.process_env import prepare_environment


def lineage(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="name@champion, name/3, @candidate, /3 or round-0003.",
            show_default="the champion",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="ID", help="Show the lineage of an image instead; the beginning of its id is enough."
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show the lineage of a model: its labels and annotators, and why each image was selected, back to the seed."""
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.provenance.lineage import image_lineage, model_lineage
    from flows.provenance.lineage_render import image_tree, model_tree
    from flows.provenance.snapshot import resolve_model_ref

    document: dict[str, Any]
    if image is not None:
        document = image_lineage(campaign, image)
        tree = image_tree(document)
    else:
        document = model_lineage(campaign, resolve_model_ref(campaign, model))
        tree = model_tree(document)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console().print(tree)
