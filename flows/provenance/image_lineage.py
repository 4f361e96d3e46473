"""Trace one image: its origin, scores and rank in each round, deliveries, annotations and quarantine entries."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.annotation.batches import all_annotation_batches
from flows.annotation.quarantine import read_entries
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.workspace.dvc_cache import MissingDataError
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import LabeledImage
from tasks.runtime.errors import UserError

# Table in derived/assemble and the name of the data set. Training uses labeled and unlabeled images.
_DATASETS = {
    "labeled.parquet": "labeled",
    "unlabeled.parquet": "unlabeled",
    "val.parquet": "validation",
    "calibration.parquet": "calibration",
}


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
    origin = _origin(latest_round, image_id_prefix)
    image_id = str(origin["image_id"])
    return {
        **origin,
        "rounds": [_round_entry(snapshot, image_id) for snapshot in rounds.values()],
        "deliveries": list(_deliveries(workspace, latest_round, image_id)),
        "annotations": _annotations(latest_round, image_id),
        "quarantined": list(_quarantine_entries(workspace, image_id)),
    }


def _origin(snapshot: RoundSnapshot, image_id_prefix: str) -> dict[str, Any]:
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


def _deliveries(workspace: Workspace, newest: RoundSnapshot, image_id: str) -> Iterator[dict[str, Any]]:
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
                "selection_model_sha256": task.model_digest,
            }


def _annotations(newest: RoundSnapshot, image_id: str) -> list[dict[str, Any]]:
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
        "seconds_spent": label.seconds_spent,
        "is_used": is_used,
    }


def _quarantine_entries(workspace: Workspace, image_id: str) -> Iterator[dict[str, Any]]:
    for entry in read_entries(workspace):
        if entry.image_id == image_id:
            yield entry.model_dump(mode="json", exclude={"raw_annotation"})
