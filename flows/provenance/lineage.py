"""Trace a model back to its labels and annotators, the selected images and reasons, and the model that selected them.

Everything is read from ledgers, git and DVC, without a server.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.tracking.mlflow_registry import CANDIDATE, CHAMPION
from flows.workspace.promotion_log import current_champion, read_decisions
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, LabelBatch, LabeledImage

SEED_BATCH = 0


def model_lineage(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """Build the lineage of the teacher of a round as a nested document.

    Args:
        workspace: the campaign.
        round_number: the round whose teacher it is.

    Returns:
        ``model`` (name, version, aliases, sha256, teacher_map in percent, promotions), ``training`` (round, tag,
        revision, digests, counts, machine) and ``labels``, newest batch first: digest, annotators, and ``deliveries``
        with rank and reason of each image. The newest batch also has ``selection_model``, the lineage of the model
        that selected its images, and so on down to the seed.

    Raises:
        UserError: there is no finished round.
    """
    return _model_lineage(workspace, load_snapshots(workspace), round_number)


def _model_lineage(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> dict[str, Any]:
    snapshot = rounds[number]
    ledger = snapshot.ledger
    return {
        "model": {
            "name": ledger["mlflow"]["model_name"],
            "version": snapshot.model_version,
            "aliases": _model_aliases(workspace, rounds, number),
            "sha256": ledger["teacher"]["sha256"],
            "teacher_map": ledger["metrics"]["teacher"]["mAP"],
            "promotions": _decisions(workspace, snapshot.model_version),
        },
        "training": _training(snapshot),
        "labels": _label_batches(workspace, rounds, number),
    }


def _training(snapshot: RoundSnapshot) -> dict[str, Any]:
    """Facts of a round under their names in the ledger."""
    ledger = snapshot.ledger
    environment = ledger["environment"]
    return {
        "round": snapshot.number,
        "tag": snapshot.tag,
        "git_revision": ledger["git_revision"],
        "published_at": ledger["times"]["published_at"],
        "labels": ledger["metrics"]["labels"],
        "boxes": ledger["metrics"]["boxes"],
        "started_from_sha256": ledger["teacher"]["started_from_sha256"],
        "params_sha256": ledger["params_sha256"],
        "gleaner": environment["gleaner"],
        "host": environment["host"],
        "device": environment["device"],
        "validation_md5": snapshot.md5("data/val.parquet"),
        "pool_md5": snapshot.md5("data/index.parquet"),
    }


def _label_batches(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> list[dict[str, Any]]:
    """Batches, newest first. Only the newest has its selection model, whose own lineage has the older ones."""
    snapshot = rounds[number]
    sha256_by_batch = {entry["batch"]: entry["sha256"] for entry in snapshot.ledger["labels"]}
    batches = []
    for batch_number in range(number, SEED_BATCH - 1, -1):
        batch = snapshot.label_batch(batch_number)
        entry: dict[str, Any] = {
            "batch": batch_number,
            "is_newest": batch_number == number,
            "sha256": sha256_by_batch.get(batch_number),
            "provider": batch.provider,
            "collected_at": batch.collected_at,
            "annotators": _count_annotations(batch),
            "deliveries": _deliveries(snapshot, batch),
        }
        if batch_number == number and number > SEED_BATCH and number - 1 in rounds:
            entry["selection_model"] = _model_lineage(workspace, rounds, number - 1)
        batches.append(entry)
    return batches


def _count_annotations(batch: LabelBatch) -> dict[str, dict[str, int]]:
    """Number of annotations by annotator and status."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label in (*batch.images, *batch.other_annotations):
        counts[label.annotator][label.status] += 1
    return {annotator: dict(sorted(by_status.items())) for annotator, by_status in sorted(counts.items())}


def _deliveries(snapshot: RoundSnapshot, batch: LabelBatch) -> list[dict[str, Any]]:
    """The images of a batch by the delivery that contained them, by rank."""
    labels_by_delivery: dict[int, list[LabeledImage]] = defaultdict(list)
    for label in batch.images:
        labels_by_delivery[label.offered_batch].append(label)
    deliveries = []
    for delivery, labels in sorted(labels_by_delivery.items()):
        manifest = snapshot.manifest(delivery) if delivery != SEED_BATCH else {}
        images = [_selected_image(label, manifest.get(label.image_id)) for label in labels]
        selection_models = sorted({task.model_digest for task in manifest.values()})
        deliveries.append(
            {
                "delivery": delivery,
                "selection_model_sha256": selection_models[0] if selection_models else None,
                "images": sorted(images, key=lambda image: (image["rank"] is None, image["rank"], image["image_id"])),
            }
        )
    return deliveries


def _selected_image(label: LabeledImage, task: AnnotationTask | None) -> dict[str, Any]:
    return {
        "image_id": label.image_id,
        "annotator": label.annotator,
        "status": label.status,
        "num_boxes": len(label.boxes),
        "rank": task.rank if task else None,
        "uncertainty": task.uncertainty if task else None,
        "reason": task.reason if task else "part of the seed",
    }


def _model_aliases(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> list[str]:
    champion = current_champion(workspace)
    aliases = []
    if champion is not None and champion.round == number:
        aliases.append(CHAMPION)
    if number == max(rounds):
        aliases.append(CANDIDATE)
    return aliases


def _decisions(workspace: Workspace, version: int) -> list[dict[str, Any]]:
    fields = {"action", "timestamp", "author", "reason"}
    decisions = read_decisions(workspace)
    return [decision.model_dump(include=fields) for decision in decisions if decision.model.version == version]
