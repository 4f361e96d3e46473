"""Render the documents of ``lineage`` and ``image_lineage`` for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from tasks.runtime.formatting import pluralize

_MAX_IMAGES = 30
_SEED_DELIVERY = 0


def model_tree(lineage: Mapping[str, Any]) -> Tree:
    """Render the lineage of a model."""
    tree = Tree(_model_line(lineage))
    _add_lineage(tree, lineage)
    return tree


def image_tree(lineage: Mapping[str, Any]) -> RenderableType:
    """Render the lineage of an image."""
    tree = Tree(f"[bold]{lineage['image_id']}[/bold]")
    name = lineage.get("file_name") or lineage["uri"]
    tree.add(escape(f"imported {lineage['imported_at']} as {name} ({lineage['uri']})"))
    delivery_node = tree.add("deliveries" if lineage["deliveries"] else "in no delivery")
    for delivery in lineage["deliveries"]:
        boxes = pluralize(delivery["num_preannotations"], "box", "boxes")
        delivery_node.add(
            escape(
                f"delivery {delivery['delivery']} ({delivery['state']}, {delivery['created_at']}), "
                f"rank {delivery['rank']}: {delivery['reason']}; "
                f"{boxes} pre-annotated by {_short_hash(delivery['selection_model_sha256'])}"
            )
        )
    annotation_node = tree.add("annotations" if lineage["annotations"] else "no annotation")
    for annotation in lineage["annotations"]:
        use = "used in training" if annotation["is_used"] else "not used in training"
        annotation_node.add(
            escape(
                f"batch {annotation['batch']}: {annotation['status']}, "
                f"{pluralize(len(annotation['boxes']), 'box', 'boxes')} by {annotation['annotator']} "
                f"({annotation['provider']}), {annotation['finished_at']}: {use}"
            )
        )
    for entry in lineage["quarantined"]:
        tree.add(escape(f"quarantined: {entry['reason']}"), style="yellow")
    return Group(tree, _rounds_table(lineage))


def _add_lineage(tree: Tree, lineage: Mapping[str, Any]) -> None:
    model, training = lineage["model"], lineage["training"]
    for decision in model["promotions"]:
        line = f"{decision['action']} {decision['timestamp']} by {decision['author']}: {decision['reason']}"
        tree.add(escape(line), style="dim")
    branch = tree.add(
        f"trained as [bold]{training['tag']}[/bold] at {_short_hash(training['git_revision'])} on "
        f"{pluralize(training['labels'], 'label')}, {pluralize(training['boxes'], 'box', 'boxes')}, "
        f"mAP {_format_value(model['teacher_map'], 1)}"
    )
    branch.add(_environment_line(training), style="dim")
    for batch in lineage["labels"]:
        _add_batch(branch, batch)


def _model_line(lineage: Mapping[str, Any]) -> str:
    model = lineage["model"]
    aliases = "".join(f" @{alias}" for alias in model["aliases"])
    return escape(f"{model['name']}/{model['version']}{aliases}  {_short_hash(model['sha256'])}")


def _environment_line(training: Mapping[str, Any]) -> str:
    gleaner = training["gleaner"]
    version = _short_hash(gleaner["git_revision"]) if gleaner["git_revision"] else gleaner["version"]
    changes = " with uncommitted changes" if gleaner["dirty"] else ""
    start = _short_hash(training["started_from_sha256"]) if training["started_from_sha256"] else "pretrained weights"
    machine = f"{training['host']} ({training['device'] or 'device unknown'})"
    return escape(f"started from {start}, Gleaner {version or 'of unknown version'}{changes} on {machine}")


def _add_batch(branch: Tree, batch: Mapping[str, Any]) -> None:
    """Add a batch, with its images only where it is the newest: older ones are listed with an earlier model."""
    annotators = ", ".join(f"{name} {_counts(counts)}" for name, counts in batch["annotators"].items())
    source = f"batch {batch['batch']} ({batch['provider']}, {batch['collected_at']}) {_short_hash(batch['sha256'])}"
    node = branch.add(escape(f"{source}: {annotators}"))
    if not batch["is_newest"]:
        return
    for delivery in batch["deliveries"]:
        _add_images(node, delivery)
    if "selection_model" in batch:
        selection_node = node.add(f"selected by {_model_line(batch['selection_model'])}")
        _add_lineage(selection_node, batch["selection_model"])


def _counts(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {status}" for status, count in counts.items())


def _add_images(node: Tree, delivery: Mapping[str, Any]) -> None:
    title = "seed" if delivery["delivery"] == _SEED_DELIVERY else f"delivery {delivery['delivery']}"
    images = delivery["images"]
    branch = node.add(f"{title}: {pluralize(len(images), 'image')}")
    for image in images[:_MAX_IMAGES]:
        rank = f"{image['rank']}. " if image["rank"] else ""
        boxes = pluralize(image["num_boxes"], "box", "boxes")
        branch.add(
            escape(f"{rank}{image['image_id']} {image['reason']}: {image['status']}, {boxes}, by {image['annotator']}")
        )
    if len(images) > _MAX_IMAGES:
        branch.add(f"and {len(images) - _MAX_IMAGES} more: --json", style="dim")


def _rounds_table(lineage: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in (
        "round", "model", "data set", "boxes", "conf.", "entropy", "overlap", "uncertainty", "rank", "selected as",
    ):  # fmt: skip
        table.add_column(header)
    for entry in lineage["rounds"]:
        rank = entry["uncertainty_rank"]
        table.add_row(
            str(entry["round"]), str(entry["model_version"]), ", ".join(entry["datasets"]) or "-",
            "-" if entry["num_boxes"] is None else str(entry["num_boxes"]),
            *(_format_value(entry[name]) for name in ("confidence", "entropy", "overlap", "uncertainty")),
            "-" if rank is None else f"{rank} of {entry['num_unlabeled']}", str(entry["selection_rank"] or "-"),
        )  # fmt: skip
    return table


def _short_hash(digest: str | None) -> str:
    return digest[:12] if digest else "-"


def _format_value(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
