"""``gleaner lineage``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.commands.options import JsonOption, WorkspaceOption
from flows.environment import prepare_environment


def lineage(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="As name@champion, name/3, @candidate, /3 or round-0003.",
            show_default="the champion",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="ID", help="Tell one image's whole story instead.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show where a model came from: labels by batch and annotator, why each image was picked, back to the seed."""
    from flows.workspaces import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.records.lineage import model_lineage
    from flows.records.lineage_image import image_lineage
    from flows.records.lineage_show import image_tree, model_tree
    from flows.records.models import resolve_model_ref

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
