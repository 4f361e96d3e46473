"""Lineage for the eye: trees of what ``flows.provenance.lineage`` and ``flows.provenance.image_lineage`` say."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from flows.provenance.lineage import format_value, short_hash

_MAX_IMAGES = 30


def model_tree(document: Mapping[str, Any]) -> Tree:
    """A model and all that is behind it."""
    tree = Tree(_model_line(document))
    _add_lineage(tree, document)
    return tree


def _add_lineage(tree: Tree, document: Mapping[str, Any]) -> None:
    model, training = document["model"], document["training"]
    for made in model["promotions"]:
        tree.add(escape(f"{made['action']} {made['timestamp']} by {made['author']}: {made['reason']}"), style="dim")
    branch = tree.add(
        f"trained as [bold]{training['tag']}[/bold] at {training['git_revision'][:12]} on "
        f"{training['labels']} labels, {training['boxes']} boxes, mAP {format_value(model['teacher_map'], 1)}"
    )
    branch.add(_environment_line(training), style="dim")
    for batch in document["labels"]:
        _add_batch(branch, batch)


def _model_line(document: Mapping[str, Any]) -> str:
    model = document["model"]
    aliases = "".join(f" @{alias}" for alias in model["aliases"])
    return escape(f"{model['name']}/{model['version']}{aliases}  {short_hash(model['sha256'])}")


def _environment_line(training: Mapping[str, Any]) -> str:
    code = training["code"] or {}
    revision = short_hash(code.get("git_revision")) if code.get("git_revision") else code.get("version")
    changed = ", with local changes" if code.get("dirty") else ""
    start = short_hash(training["started_from_sha256"]) if training["started_from_sha256"] else "pretrained weights"
    location = f"on {training['host']} ({training['device'] or 'device unknown'})" if training["host"] else ""
    return escape(f"started from {start}, Gleaner {revision or 'unknown'}{changed} {location}")


def _add_batch(branch: Tree, batch: Mapping[str, Any]) -> None:
    """Images are listed where the batch was new: a later model's older batches stand further down."""
    annotators = ", ".join(f"{name} {_counts(counts)}" for name, counts in batch["annotators"].items())
    line = f"batch {batch['batch']} ({batch['provider']}, {batch['collected_at']}) {short_hash(batch['sha256'])}: {annotators}"
    node = branch.add(escape(line))
    if not batch["is_newest"]:
        return
    for delivery in batch["deliveries"]:
        _add_images(node, delivery)
    if "selected_by" in batch:
        selection_node = node.add(f"picked by {_model_line(batch['selected_by'])}")
        _add_lineage(selection_node, batch["selected_by"])


def _counts(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {status}" for status, count in counts.items())


def _add_images(node: Tree, delivery: Mapping[str, Any]) -> None:
    title = "seed" if delivery["delivery"] == 0 else f"delivery {delivery['delivery']}"
    images = delivery["images"]
    branch = node.add(f"{title}: {len(images)} images")
    for image in images[:_MAX_IMAGES]:
        rank = f"{image['rank']}. " if image["rank"] else ""
        annotation = f"{image['status']}, {image['boxes']} boxes, by {image['annotator']}"
        branch.add(escape(f"{rank}{image['image_id']} {image['reason']}: {annotation}"))
    if len(images) > _MAX_IMAGES:
        branch.add(f"and {len(images) - _MAX_IMAGES} more: --json", style="dim")


def image_tree(lineage: Mapping[str, Any]) -> RenderableType:
    """One image's story."""
    tree = Tree(f"[bold]{lineage['image_id']}[/bold]")
    tree.add(
        escape(f"imported {lineage['imported_at']} as {lineage.get('file_name') or lineage['uri']} ({lineage['uri']})")
    )
    delivery_node = tree.add("offered" if lineage["offers"] else "never offered")
    for offer in lineage["offers"]:
        delivery_node.add(
            escape(
                f"delivery {offer['delivery']} ({offer['state']}, {offer['offered_at']}) as number {offer['rank']}: "
                f"{offer['reason']}; {offer['preannotated_boxes']} boxes drawn by {short_hash(offer['model_sha256'])}"
            )
        )
    annotation_node = tree.add("answered" if lineage["answers"] else "never answered")
    for answer in lineage["answers"]:
        use = "learned from" if answer["counts"] else "kept, not learned from"
        annotation_node.add(
            escape(
                f"batch {answer['batch']}: {answer['status']}, {len(answer['boxes'])} boxes by {answer['annotator']} "
                f"({answer['provider']}), {answer['finished_at']}: {use}"
            )
        )
    for entry in lineage["quarantined"]:
        tree.add(escape(f"set aside: {entry['reason']}"), style="yellow")
    return Group(tree, _rounds_table(lineage))


def _rounds_table(lineage: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("round", "model", "set", "boxes", "conf.", "entropy", "overlap", "uncertainty", "place", "rank"):
        table.add_column(header)
    for entry in lineage["rounds"]:
        table.add_row(
            str(entry["round"]), str(entry["model_version"]), ", ".join(entry["sets"]) or "-",
            str(entry["num_boxes"] if entry["num_boxes"] is not None else "-"),
            *(format_value(entry[name]) for name in ("confidence", "entropy", "overlap", "uncertainty")),
            entry["place"] or "-", str(entry["selection_rank"] or "-"),
        )  # fmt: skip
    return table
