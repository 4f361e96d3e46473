"""The whole story of one image: its origin, what each model thought of it, who labeled it, what was learned from it."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.annotation.batches import all_annotation_batches
from flows.annotation.quarantine import read_entries
from flows.provenance.lineage import read_batch_at, read_manifest_at
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.workspace.dvc_cache import MissingDataError
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import LabeledImage
from tasks.runtime.errors import UserError

# Training takes part of both, the labeled and the unlabeled ones.
_DATASET_NAMES = {
    "labeled.parquet": "labeled",
    "unlabeled.parquet": "unlabeled",
    "val.parquet": "validation",
    "calibration.parquet": "calibration",
}


def image_lineage(workspace: Workspace, image_id_prefix: str) -> dict[str, Any]:
    """Everything that is recorded of one image.

    Args:
        workspace: the campaign.
        wanted: its id, or the beginning of one that is no other's.

    Returns:
        image_id, origin (file_name, uri, sha256), rounds (set, scores, uncertainty and rank in each), offers (delivery,
        rank, reason, model), answers (batch, annotator, times, whether it counts) and quarantined answers.

    Raises:
        UserError: no image or several have such an id.
    """
    rounds = load_snapshots(workspace)
    if not rounds:
        raise UserError(workspace.root / "rounds", "ledgers are 0, expected a finished round", "Run: gleaner run")
    latest_round = rounds[max(rounds)]
    origin = _origin(latest_round, image_id_prefix)
    image_id = str(origin["image_id"])
    return {
        **origin,
        "rounds": [_round_entry(snapshot, image_id) for snapshot in rounds.values()],
        "offers": list(_deliveries(workspace, latest_round, image_id)),
        "answers": _annotations(latest_round, image_id),
        "quarantined": list(_quarantine_entries(workspace, image_id)),
    }


def _origin(newest: RoundSnapshot, image_id_prefix: str) -> dict[str, Any]:
    """The image's row of the index; validation images stand in their own table."""
    found: dict[str, dict[str, Any]] = {}
    for path, keys in (
        ("data/index.parquet", ("uri", "sha256", "file_name")),
        ("derived/assemble/val.parquet", ("uri",)),
    ):
        table = pq.read_table(newest.cached_path(path))
        for row in table.filter(pc.starts_with(table["image_id"], image_id_prefix)).to_pylist():
            found.setdefault(row["image_id"], {key: row[key] for key in keys})
    if len(found) != 1:
        problem = f"images whose id begins with {image_id_prefix!r} are {len(found)}, expected 1"
        raise UserError("--image", problem, "Give more of the id." if found else "data/index.parquet lists all ids.")
    image_id, row = next(iter(found.items()))
    imported = newest.ledger.get("labels") or [{"collected_at": None}]
    return {"image_id": image_id, **row, "imported_at": imported[0]["collected_at"]}


def _round_entry(snapshot: RoundSnapshot, image_id: str) -> dict[str, Any]:
    """What one round did with the image; None where it had no part in that."""
    scores = _find_row(snapshot, "derived/score/scores.parquet", image_id) or {}
    uncertainty = _find_row(snapshot, "derived/weigh/uncertainty.parquet", image_id) or {}
    selected = _find_row(snapshot, "derived/select/selection.parquet", image_id) or {}
    return {
        "round": snapshot.number,
        "model_version": snapshot.model_version,
        "sets": [
            word for name, word in _DATASET_NAMES.items() if _find_row(snapshot, f"derived/assemble/{name}", image_id)
        ],
        **{name: scores.get(name) for name in ("num_boxes", "confidence", "entropy", "overlap")},
        "uncertainty": uncertainty.get("uncertainty"),
        "place": _rank(snapshot, uncertainty.get("uncertainty")),
        "selection_rank": selected.get("rank"),
        "reason": selected.get("reason"),
    }


def _rank(snapshot: RoundSnapshot, uncertainty: float | None) -> str | None:
    """``3 of 120``: the image's place in the unlabeled pool by uncertainty, the most uncertain being 1."""
    if uncertainty is None:
        return None
    weights = _read_table(snapshot, "derived/weigh/uncertainty.parquet")
    unlabeled = _read_table(snapshot, "derived/assemble/unlabeled.parquet")
    if weights is None or unlabeled is None:
        return None
    pool = weights.filter(pc.is_in(weights["image_id"], value_set=unlabeled["image_id"].combine_chunks()))
    above = pc.sum(pc.greater(pool["uncertainty"], uncertainty)).as_py() or 0
    return f"{above + 1} of {pool.num_rows}"


def _find_row(snapshot: RoundSnapshot, path: str, image_id: str) -> dict[str, Any] | None:
    table = _read_table(snapshot, path)
    if table is None:
        return None
    rows = table.filter(pc.equal(table["image_id"], image_id)).to_pylist()
    return dict(rows[0]) if rows else None


def _read_table(snapshot: RoundSnapshot, path: str) -> pa.Table | None:
    """A table of the round; None where its bytes are nowhere: the rest of the story can still be told."""
    try:
        return pq.read_table(snapshot.cached_path(path))
    except MissingDataError:
        return None


def _deliveries(workspace: Workspace, newest: RoundSnapshot, image_id: str) -> Iterator[dict[str, Any]]:
    for delivery in all_annotation_batches(workspace):
        task = read_manifest_at(newest, delivery.batch).get(image_id) or read_manifest_at(
            _latest(newest), delivery.batch
        ).get(image_id)
        if task is not None:
            yield {
                "delivery": delivery.batch,
                "offered_at": delivery.created_at,
                "state": delivery.state,
                "rank": task.rank,
                "reason": task.reason,
                "uncertainty": task.uncertainty,
                "preannotated_boxes": len(task.predictions),
                "model_sha256": task.model_digest,
            }


def _latest(snapshot: RoundSnapshot) -> RoundSnapshot:
    """The same with today's files: the newest delivery goes out after the newest tag."""
    return RoundSnapshot(snapshot.workspace, snapshot.dvc_cache, snapshot.ledger, "HEAD")


def _annotations(newest: RoundSnapshot, image_id: str) -> list[dict[str, Any]]:
    """Every answer in the order it came in, and which one of them is learned from."""
    store = read_labels(newest.workspace.labels)
    current = store.current.get(image_id)
    annotations: list[dict[str, Any]] = []
    for number in range(newest.number + 1):
        batch = read_batch_at(newest, number)
        for label in (*batch.images, *batch.other_annotations):
            if label.image_id == image_id:
                is_used = current is not None and (current.batch, current.label) == (number, label)
                annotations.append(_annotation_entry(label, number, batch.provider, is_used=is_used))
    return annotations


def _annotation_entry(label: LabeledImage, batch: int, provider: str, *, is_used: bool) -> dict[str, Any]:
    return {
        "batch": batch,
        "offered_batch": label.offered_batch,
        "provider": provider,
        "annotator": label.annotator,
        "finished_at": label.finished_at,
        "status": label.status,
        "boxes": [box.model_dump(mode="json") for box in label.boxes],
        "seconds_spent": label.seconds_spent,
        "counts": is_used,
    }


def _quarantine_entries(workspace: Workspace, image_id: str) -> Iterator[dict[str, Any]]:
    for entry in read_entries(workspace):
        if entry.image_id == image_id:
            yield entry.model_dump(mode="json", exclude={"raw_annotation"})
