"""Where a model came from: labels, who gave them, which model picked the images and why, and so on to the seed.

Everything is read from ledgers, git and DVC; no server is asked.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from flows.annotation.batches import MANIFEST
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.tracking.mlflow_registry import CANDIDATE, CHAMPION
from flows.workspace.git import read_blob
from flows.workspace.promotion_log import current_champion, read_decisions
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, LabelBatch, LabeledImage

SEED_BATCH = 0


def model_lineage(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """The tree behind one model, as nested documents.

    Args:
        workspace: the campaign.
        round_number: whose teacher the model is.

    Returns:
        model (name, version, aliases, promotions), training (round, revisions, digests, figures) and labels: one
        entry a batch with its digest, annotators and selection. A selection holds the images with rank and reason,
        and under ``by`` the lineage of the model that picked them, down to the seed.
    """
    rounds = load_snapshots(workspace)
    return _model_node(workspace, rounds, round_number)


def _model_node(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> dict[str, Any]:
    snapshot = rounds[number]
    ledger = snapshot.ledger
    return {
        "model": {
            "name": ledger["mlflow"]["model_name"],
            "version": snapshot.model_version,
            "aliases": _model_aliases(workspace, rounds, number),
            "sha256": ledger.get("teacher", {}).get("sha256"),
            "teacher_map": ledger["metrics"]["teacher"]["mAP"],
            "promotions": _promotion_entries(workspace, snapshot.model_version),
        },
        "training": _training_entry(snapshot),
        "labels": _label_batches(workspace, rounds, number),
    }


def _training_entry(snapshot: RoundSnapshot) -> dict[str, Any]:
    ledger = snapshot.ledger
    return {
        "round": snapshot.number,
        "tag": snapshot.tag,
        "git_revision": ledger["git_revision"],
        "finished_at": ledger["times"]["published_at"],
        "labels": ledger["metrics"]["labels"],
        "boxes": ledger["metrics"]["boxes"],
        "started_from_sha256": ledger.get("teacher", {}).get("started_from_sha256"),
        "params_sha256": ledger["params_sha256"],
        "code": ledger.get("environment", {}).get("gleaner"),
        "host": ledger.get("environment", {}).get("host"),
        "device": ledger.get("environment", {}).get("device"),
        "validation_md5": snapshot.md5("data/val.parquet"),
        "pool_md5": snapshot.md5("data/index.parquet"),
    }


def _label_batches(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> list[dict[str, Any]]:
    """Newest first; only the newest one tells the story of the model that picked it, which tells the rest."""
    batches = []
    for batch_number in range(number, -1, -1):
        batch = read_batch_at(rounds[number], batch_number)
        entry: dict[str, Any] = {
            "batch": batch_number,
            "is_newest": batch_number == number,
            "sha256": _batch_sha256(rounds[number], batch_number),
            "provider": batch.provider,
            "collected_at": batch.collected_at,
            "annotators": count_annotations(batch),
            "deliveries": _deliveries(rounds[number], batch),
        }
        if batch_number == number and number > SEED_BATCH and number - 1 in rounds:
            entry["selected_by"] = _model_node(workspace, rounds, number - 1)
        batches.append(entry)
    return batches


def read_batch_at(snapshot: RoundSnapshot, batch: int) -> LabelBatch:
    """A label batch as a round had it."""
    return LabelBatch.model_validate_json(snapshot.read_blob(f"data/labels/batch-{batch:04d}.json"))


def read_manifest_at(snapshot: RoundSnapshot, batch: int) -> dict[str, AnnotationTask]:
    """What was offered as a delivery, by image id; empty for the seed, and where git has no manifest of it."""
    content = read_blob(snapshot.workspace.root, snapshot.revision, f"deliveries/batch-{batch:04d}/{MANIFEST}")
    tasks = (AnnotationTask.model_validate_json(line) for line in (content or b"").splitlines() if line)
    return {task.image_id: task for task in tasks}


def count_annotations(batch: LabelBatch) -> dict[str, dict[str, int]]:
    """Answers by annotator and status."""
    counted: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label in (*batch.images, *batch.other_annotations):
        counted[label.annotator][label.status] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(counted.items())}


def _deliveries(snapshot: RoundSnapshot, batch: LabelBatch) -> list[dict[str, Any]]:
    """The images of a batch by the delivery they were offered in, and why each was picked."""
    by_delivery: dict[int, list[LabeledImage]] = defaultdict(list)
    for label in batch.images:
        by_delivery[label.offered_batch].append(label)
    found = []
    for delivery, labels in sorted(by_delivery.items()):
        manifest = read_manifest_at(snapshot, delivery) if delivery != SEED_BATCH else {}
        images = [_selected_image(label, manifest.get(label.image_id)) for label in labels]
        selection_models = {task.model_digest for task in manifest.values()}
        found.append(
            {
                "delivery": delivery,
                "selected_by_sha256": sorted(selection_models)[0] if selection_models else None,
                "images": sorted(images, key=lambda image: (image["rank"] is None, image["rank"], image["image_id"])),
            }
        )
    return found


def _selected_image(label: LabeledImage, task: AnnotationTask | None) -> dict[str, Any]:
    return {
        "image_id": label.image_id,
        "annotator": label.annotator,
        "status": label.status,
        "boxes": len(label.boxes),
        "rank": task.rank if task else None,
        "uncertainty": task.uncertainty if task else None,
        "reason": task.reason if task else "part of the seed",
    }


def _model_aliases(workspace: Workspace, rounds: Mapping[int, RoundSnapshot], number: int) -> list[str]:
    champion = current_champion(workspace, {key: snapshot.ledger for key, snapshot in rounds.items()})
    is_champion = champion is not None and champion.round == number
    return [alias for alias, holds in ((CHAMPION, is_champion), (CANDIDATE, number == max(rounds))) if holds]


def _promotion_entries(workspace: Workspace, version: int) -> list[dict[str, Any]]:
    return [
        {"action": made.action, "timestamp": made.timestamp, "author": made.author, "reason": made.reason}
        for made in read_decisions(workspace)
        if made.model.version == version
    ]


def _batch_sha256(snapshot: RoundSnapshot, batch: int) -> str | None:
    if batch == snapshot.number:
        return str(snapshot.ledger["labels_sha256"])
    listed = {entry["batch"]: entry["sha256"] for entry in snapshot.ledger.get("labels", ())}
    return listed.get(batch)


def short_hash(digest: str | None) -> str:
    """Enough of a digest for the eye."""
    return digest[:12] if digest else "-"


def format_value(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
