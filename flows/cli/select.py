"""Command ``gleaner select``: show the newest batch, explain where an image stands, and find images like one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, WorkspaceOption
from tasks.runtime.formatting import pluralize

if TYPE_CHECKING:
    from tasks.data.paths import Workspace

_MISSING = "-"
_TEXT = "text:"


def select(
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="ID", help="Say why an image was selected or not; the beginning of its id is enough."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="IMAGE_OR_TEXT",
            help="List the unlabeled images that are most like this one: the beginning of an id, an image file, or"
            " words (section clip of params.yaml; text: before them where they could be an id).",
        ),
    ] = None,
    cover: Annotated[
        bool,
        typer.Option(
            "--cover-classes", help="List unlabeled images that show every class by its name alone (section clip)."
        ),
    ] = False,
    number: Annotated[
        int, typer.Option("--number", min=1, help="With --like and --cover-classes: images to list.")
    ] = 20,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show the batch that was selected last, why an image is or is not in it, or images like one. Changes nothing."""
    from flows.workspace.run_lock import require_workspace
    from tasks.selection import explanation

    if like is not None and explain is not None:
        raise typer.BadParameter("it cannot be combined with --explain", param_hint="--like")
    if cover and (like is not None or explain is not None):
        raise typer.BadParameter("it cannot be combined with --like or --explain", param_hint="--cover-classes")
    campaign = require_workspace(workspace)
    document: Any
    shown: RenderableType
    if like is not None:
        document = _similar(campaign, like, number)
        shown = similar_table(document)
    elif cover:
        document = _search_by_words(campaign, ("--cover-classes",), number)
        shown = similar_table(document)
    elif explain is None:
        document = explanation.read_selection(campaign)
        shown = batch_table(document)
    else:
        document = explanation.explain(campaign, explain)
        shown = explanation_view(document)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console(soft_wrap=True).print(shown)


def _similar(campaign: "Workspace", like: str, number: int) -> list[dict[str, Any]]:
    """Find images like one of the campaign, like an image file, which the newest teacher describes, or like words."""
    from tasks.selection.similar import find_similar

    if not Path(like).is_file():
        if _is_text(campaign, like):
            return _search_by_words(campaign, ("--like", like.removeprefix(_TEXT)), number)
        return find_similar(campaign, like, number)
    import numpy as np

    from flows.workspace.module_runner import run_module

    described = campaign.scratch("like") / "embedding.npy"
    run_module(campaign, "tasks.selection.embed_image", (str(Path(like).resolve()), str(described)), lambda _: None)
    return find_similar(campaign, np.load(described, allow_pickle=False), number)


def _is_text(campaign: "Workspace", like: str) -> bool:
    """Whether these are words: marked as such, or no beginning of an id where the campaign has a model of words."""
    from tasks.params import load_params

    if like.startswith(_TEXT):
        return True
    return bool(load_params(campaign.params).clip.weights) and not set(like) <= set("0123456789abcdef")


def _search_by_words(campaign: "Workspace", query: Sequence[str], number: int) -> list[dict[str, Any]]:
    from flows.workspace.module_runner import run_module
    from tasks.storage import files

    out = campaign.scratch("clip") / "found.json"
    run_module(campaign, "tasks.selection.clip_search", (*query, str(number), str(out)), lambda _: None)
    found: list[dict[str, Any]] = files.read_json(out)
    return found


def similar_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each image, the most similar first; with the class that an image stands for, if it has one."""
    has_classes = any("class_name" in row for row in rows)
    unit = "standard deviations over the images" if has_classes else "cosine of image embeddings, at most 1"
    table = Table(box=SIMPLE_HEAD, caption=f"similarity: {unit}", caption_justify="left")
    for header in ("image", "file", *(["class"] if has_classes else [])):
        table.add_column(header)
    table.add_column("similarity", justify="right")
    for row in rows:
        of_class = [escape(row["class_name"])] if has_classes else []
        table.add_row(row["image_id"], escape(row["file_name"] or _MISSING), *of_class, f"{row['similarity']:.2f}")
    return table


def batch_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each image of the batch."""
    minutes = sum(row["expected_minutes"] for row in rows)
    table = Table(box=SIMPLE_HEAD, title=f"{pluralize(len(rows), 'image')}, about {minutes:.0f} minutes")
    for header in ("rank", "image", "picked by", "minutes", "reason"):
        table.add_column(header, justify="right" if header in ("rank", "minutes") else "left")
    for row in rows:
        table.add_row(
            str(row["rank"]),
            row["image_id"],
            row["picked_by"],
            f"{row['expected_minutes']:.1f}",
            escape(row["reason"]),
        )
    return table


def explanation_view(document: Mapping[str, Any]) -> RenderableType:
    """Render what ``explain`` found of an image."""
    image = escape(document["image_id"])
    if document["state"] != "candidate":
        return f"[bold]{image}[/bold] is no candidate: {escape(document['state'])}."
    return Group(
        f"[bold]{image}[/bold]: {_standing(document)}",
        escape(document["reason"]),
        _numbers_table(document),
        _metrics_table(document["metrics"]),
        _objectives_table(document["objectives"]),
        *_nearest_lines(document),
    )


def _standing(document: Mapping[str, Any]) -> str:
    place = f"rank {document['rank']} of {document['num_candidates']} by strategy {document['strategy']}"
    selected = document["selected"]
    if selected is None:
        return f"not among the {pluralize(document['batch_size'], 'image')} of the batch; {place}"
    how = "a uniform draw" if selected["is_random_pick"] else f"picked by {selected['picked_by']}"
    return f"number {selected['rank']} of the batch, {how}; {place}"


def _numbers_table(document: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    names = ("uncertainty", "value", "num_boxes", "expected_boxes", "expected_misses", "expected_minutes")
    for name in names:
        table.add_column(name.replace("_", " ").replace("num boxes", "detections"), justify="right")
    table.add_row(*(_format(document[name], 0 if name == "num_boxes" else 2) for name in names))
    return table


def _metrics_table(metrics: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for header in ("metric", "raw", "normalized", "weight"):
        table.add_column(header, justify="left" if header == "metric" else "right")
    for name, figures in metrics.items():
        table.add_row(name, *(_format(figures[key], 3) for key in ("raw", "normalized", "weight")))
    return table


def _objectives_table(objectives: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, caption="less: share of the candidates with a smaller value", caption_justify="left")
    for header in ("objective", "value", "less", "weight"):
        table.add_column(header, justify="left" if header == "objective" else "right")
    for entry in objectives:
        weight = _format(entry["weight"] or None, 2)
        table.add_row(entry["name"], _format(entry["value"], 3), _format(entry["share"], 2), weight)
    return table


def _nearest_lines(document: Mapping[str, Any]) -> list[str]:
    return [
        f"Nearest {kind} image: {escape(found['image_id'])}, at a cosine distance of {found['distance']:.2f}."
        for kind, found in (("picked", document["nearest_selected"]), ("labeled", document["nearest_labeled"]))
        if found is not None
    ]


def _format(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"
