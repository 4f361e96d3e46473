"""Trace a model to its labels, annotators and selection reasons, and an image through rounds and deliveries.

Of a model: its labels and annotators, the selected images and reasons, and the model that selected them, back to the
seed. Of an image: its origin, scores and rank in each round, deliveries, annotations and quarantine entries.
Everything is read from ledgers, git and DVC, without a server.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.annotation.batches import all_annotation_batches
from flows.annotation.quarantine import read_entries
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.tracking.mlflow_run import CANDIDATE, CHAMPION
from flows.workspace.dvc_cache import MissingDataError
from flows.workspace.export_log import read_exports
from flows.workspace.promotion_log import current_champion, read_decisions
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, LabelBatch, LabeledImage
from tasks.runtime.errors import UserError

SEED_BATCH = 0
# Table in derived/assemble and the name of the data set. Training uses labeled and unlabeled images.
_DATASETS = {
    "labeled.parquet": "labeled",
    "unlabeled.parquet": "unlabeled",
    "val.parquet": "validation",
    "calibration.parquet": "calibration",
}


def model_lineage(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """Build the lineage of the teacher of a round as a nested document.

    Args:
        workspace: the campaign.
        round_number: the round whose teacher it is.

    Returns:
        ``model`` (name, version, aliases, sha256, teacher_map in percent, promotions, exports), ``training`` (round,
        tag, revision, digests, counts, machine) and ``labels``, newest batch first: digest, annotators, and
        ``deliveries`` with rank and reason of each image. The newest batch also has ``selection_model``, the lineage of
        the model that selected its images, and so on down to the seed.

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
            "exports": _exports(workspace, number),
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
            "deliveries": _model_deliveries(snapshot, batch),
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


def _model_deliveries(snapshot: RoundSnapshot, batch: LabelBatch) -> list[dict[str, Any]]:
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
        "checks_batch": label.checks_batch,
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


def _exports(workspace: Workspace, round_number: int) -> list[dict[str, Any]]:
    fields = {
        "name",
        "version",
        "format",
        "precision",
        "timestamp",
        "author",
        "map_export",
        "sha256_by_file",
        "prune_frac",
    }
    exports = read_exports(workspace)
    return [
        record.model_dump(include=fields, exclude_defaults=True)
        for record in exports
        if record.model.round == round_number
    ]


def image_lineage(workspace: Workspace, image_id_prefix: str) -> dict[str, Any]:
    """Collect everything that is recorded of one image.

    Args:
        workspace: the campaign.
        image_id_prefix: the id, or the beginning of it that no other image has.

    Returns:
        ``image_id``, origin (``uri``, ``sha256``, ``file_name``, ``imported_at``), ``rounds`` (data sets, scores,
        uncertainty and its rank), ``deliveries`` (rank, reason, model), ``annotations`` (batch, annotator, times,
        whether it is used) and ``quarantined`` annotations.

    Raises:
        UserError: there is no finished round, or not exactly one image with such an id.
    """
    rounds = load_snapshots(workspace)
    latest_round = rounds[max(rounds)]
    origin = _image_origin(latest_round, image_id_prefix)
    image_id = str(origin["image_id"])
    return {
        **origin,
        "rounds": [_round_entry(snapshot, image_id) for snapshot in rounds.values()],
        "deliveries": list(_image_deliveries(workspace, latest_round, image_id)),
        "annotations": _image_annotations(latest_round, image_id),
        "quarantined": list(_quarantine_entries(workspace, image_id)),
    }


def _image_origin(snapshot: RoundSnapshot, image_id_prefix: str) -> dict[str, Any]:
    """The image's row in the index of the pool, or in the validation set, which has its own table."""
    found: dict[str, dict[str, Any]] = {}
    for path, keys in (
        ("data/index.parquet", ("uri", "sha256", "file_name")),
        ("derived/assemble/val.parquet", ("uri",)),
    ):
        table = pq.read_table(snapshot.cached_path(path))
        for row in table.filter(pc.starts_with(table["image_id"], image_id_prefix)).to_pylist():
            found.setdefault(row["image_id"], {key: row[key] for key in keys})
    if len(found) != 1:
        problem = f"number of images whose id begins with {image_id_prefix!r} is {len(found)}, expected 1"
        raise UserError("--image", problem, "Give more of the id." if found else "data/index.parquet lists all ids.")
    image_id, row = next(iter(found.items()))
    return {"image_id": image_id, **row, "imported_at": snapshot.ledger["labels"][0]["collected_at"]}


def _round_entry(snapshot: RoundSnapshot, image_id: str) -> dict[str, Any]:
    """Data sets, scores and selection of the image in a round; None for each value it does not have there."""
    scores = _find_row(snapshot, "derived/score/scores.parquet", image_id) or {}
    uncertainty = (_find_row(snapshot, "derived/weigh/uncertainty.parquet", image_id) or {}).get("uncertainty")
    selected = _find_row(snapshot, "derived/select/selection.parquet", image_id) or {}
    datasets = [
        dataset for name, dataset in _DATASETS.items() if _find_row(snapshot, f"derived/assemble/{name}", image_id)
    ]
    rank, num_unlabeled = _uncertainty_rank(snapshot, uncertainty)
    return {
        "round": snapshot.number,
        "model_version": snapshot.model_version,
        "datasets": datasets,
        **{name: scores.get(name) for name in ("num_boxes", "confidence", "entropy", "overlap")},
        "uncertainty": uncertainty,
        "uncertainty_rank": rank,
        "num_unlabeled": num_unlabeled,
        "selection_rank": selected.get("rank"),
        "reason": selected.get("reason"),
    }


def _uncertainty_rank(snapshot: RoundSnapshot, uncertainty: float | None) -> tuple[int | None, int | None]:
    """Rank among the unlabeled images by uncertainty, 1 for the most uncertain, and the number of those images."""
    if uncertainty is None:
        return None, None
    table = _read_table(snapshot, "derived/weigh/uncertainty.parquet")
    unlabeled = _read_table(snapshot, "derived/assemble/unlabeled.parquet")
    if table is None or unlabeled is None:
        return None, None
    pool = table.filter(pc.is_in(table["image_id"], value_set=unlabeled["image_id"].combine_chunks()))
    num_above = pc.sum(pc.greater(pool["uncertainty"], uncertainty)).as_py() or 0
    return num_above + 1, pool.num_rows


def _find_row(snapshot: RoundSnapshot, path: str, image_id: str) -> dict[str, Any] | None:
    table = _read_table(snapshot, path)
    if table is None:
        return None
    rows = table.filter(pc.equal(table["image_id"], image_id)).to_pylist()
    return dict(rows[0]) if rows else None


def _read_table(snapshot: RoundSnapshot, path: str) -> pa.Table | None:
    """Read a table of the round; None where it is in neither cache nor remote, so that the rest can be shown."""
    try:
        return pq.read_table(snapshot.cached_path(path))
    except MissingDataError:
        return None


def _image_deliveries(workspace: Workspace, newest: RoundSnapshot, image_id: str) -> Iterator[dict[str, Any]]:
    """Deliveries that contain the image. The newest delivery is committed after the newest tag, so HEAD is read too."""
    head = RoundSnapshot(newest.workspace, newest.dvc_cache, newest.ledger, "HEAD")
    for batch in all_annotation_batches(workspace):
        task = newest.manifest(batch.batch).get(image_id) or head.manifest(batch.batch).get(image_id)
        if task is not None:
            yield {
                "delivery": batch.batch,
                "created_at": batch.created_at,
                "state": batch.state,
                "rank": task.rank,
                "reason": task.reason,
                "uncertainty": task.uncertainty,
                "num_preannotations": len(task.predictions),
                "checks_batch": task.checks_batch,
                "is_honeypot": task.is_honeypot,
                "selection_model_sha256": task.model_digest,
            }


def _image_annotations(newest: RoundSnapshot, image_id: str) -> list[dict[str, Any]]:
    """Every annotation of the image in the order of import, and whether it is the one that training uses."""
    current = read_labels(newest.workspace.labels).current.get(image_id)
    annotations: list[dict[str, Any]] = []
    for number in range(newest.number + 1):
        batch = newest.label_batch(number)
        for label in (*batch.images, *batch.other_annotations):
            if label.image_id == image_id:
                is_used = current is not None and (current.batch, current.label) == (number, label)
                annotations.append(_annotation_entry(label, number, batch.provider, is_used=is_used))
    return annotations


def _annotation_entry(label: LabeledImage, batch: int, provider: str, *, is_used: bool) -> dict[str, Any]:
    return {
        "batch": batch,
        "delivery": label.offered_batch,
        "provider": provider,
        "annotator": label.annotator,
        "finished_at": label.finished_at,
        "status": label.status,
        "boxes": [box.model_dump(mode="json") for box in label.boxes],
        "crowd_regions": [box.model_dump(mode="json") for box in label.crowd_regions],
        "seconds_spent": label.seconds_spent,
        "checks_batch": label.checks_batch,
        "is_used": is_used,
    }


def _quarantine_entries(workspace: Workspace, image_id: str) -> Iterator[dict[str, Any]]:
    for entry in read_entries(workspace):
        if entry.image_id == image_id:
            yield entry.model_dump(mode="json", exclude={"raw_annotation"})
