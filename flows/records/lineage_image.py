"""The whole story of one image: its origin, what each model thought of it, who labeled it, what was learned from it."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.labels.deliveries import all_deliveries
from flows.labels.quarantine import read_entries
from flows.records.dvc_objects import MissingBytesError
from flows.records.lineage import manifest_at, read_batch_at
from flows.records.recorded import RecordedRound, recorded_rounds
from tasks.contracts import LabeledImage
from tasks.errors import UserError
from tasks.label_store import read_labels
from tasks.paths import Workspace

# Training takes part of both, the labeled and the unlabeled ones.
_SETS = {
    "labeled.parquet": "labeled",
    "unlabeled.parquet": "unlabeled",
    "val.parquet": "validation",
    "calibration.parquet": "calibration",
}


def image_story(workspace: Workspace, wanted: str) -> dict[str, Any]:
    """Everything that is recorded of one image.

    Args:
        workspace: the campaign.
        wanted: its id, or the beginning of one that is no other's.

    Returns:
        image_id, origin (source, uri, sha256), rounds (set, scores, uncertainty and rank in each), offers (delivery,
        rank, reason, model), answers (batch, annotator, times, whether it counts) and quarantined answers.

    Raises:
        UserError: no image or several have such an id.
    """
    rounds = recorded_rounds(workspace)
    if not rounds:
        raise UserError(workspace.root / "rounds", "ledgers are 0, expected a finished round", "Run: gleaner night")
    newest = rounds[max(rounds)]
    origin = _origin(newest, wanted)
    image_id = str(origin["image_id"])
    return {
        **origin,
        "rounds": [_in_round(recorded, image_id) for recorded in rounds.values()],
        "offers": list(_offers(workspace, newest, image_id)),
        "answers": _answers(newest, image_id),
        "quarantined": list(_quarantined(workspace, image_id)),
    }


def _origin(newest: RecordedRound, wanted: str) -> dict[str, Any]:
    """The image's row of the index; validation images stand in their own table."""
    found: dict[str, dict[str, Any]] = {}
    for path, keys in (("data/index.parquet", ("uri", "sha256", "source")), ("derived/assemble/val.parquet", ("uri",))):
        table = pq.read_table(newest.stored(path))
        for row in table.filter(pc.starts_with(table["image_id"], wanted)).to_pylist():
            found.setdefault(row["image_id"], {key: row[key] for key in keys})
    if len(found) != 1:
        problem = f"images whose id begins with {wanted!r} are {len(found)}, expected 1"
        raise UserError("--image", problem, "Give more of the id." if found else "data/index.parquet lists all ids.")
    image_id, row = next(iter(found.items()))
    imported = newest.ledger.get("labels") or [{"collected_at": None}]
    return {"image_id": image_id, **row, "imported_at": imported[0]["collected_at"]}


def _in_round(recorded: RecordedRound, image_id: str) -> dict[str, Any]:
    """What one round did with the image; None where it had no part in that."""
    scores = _row(recorded, "derived/score/scores.parquet", image_id) or {}
    weights = _row(recorded, "derived/weigh/weights.parquet", image_id) or {}
    picked = _row(recorded, "derived/select/selection.parquet", image_id) or {}
    return {
        "round": recorded.number,
        "model_version": recorded.model_version,
        "sets": [word for name, word in _SETS.items() if _row(recorded, f"derived/assemble/{name}", image_id)],
        **{name: scores.get(name) for name in ("num_boxes", "confidence", "entropy", "overlap")},
        "uncertainty": weights.get("uncertainty"),
        "place": _place(recorded, weights.get("uncertainty")),
        "picked_rank": picked.get("rank"),
        "reason": picked.get("reason"),
    }


def _place(recorded: RecordedRound, uncertainty: float | None) -> str | None:
    """``3 of 120``: the image's place in the unlabeled pool by uncertainty, the most uncertain being 1."""
    if uncertainty is None:
        return None
    weights = _table(recorded, "derived/weigh/weights.parquet")
    unlabeled = _table(recorded, "derived/assemble/unlabeled.parquet")
    if weights is None or unlabeled is None:
        return None
    pool = weights.filter(pc.is_in(weights["image_id"], value_set=unlabeled["image_id"].combine_chunks()))
    above = pc.sum(pc.greater(pool["uncertainty"], uncertainty)).as_py() or 0
    return f"{above + 1} of {pool.num_rows}"


def _row(recorded: RecordedRound, path: str, image_id: str) -> dict[str, Any] | None:
    table = _table(recorded, path)
    if table is None:
        return None
    rows = table.filter(pc.equal(table["image_id"], image_id)).to_pylist()
    return dict(rows[0]) if rows else None


def _table(recorded: RecordedRound, path: str) -> pa.Table | None:
    """A table of the round; None where its bytes are nowhere: the rest of the story can still be told."""
    try:
        return pq.read_table(recorded.stored(path))
    except MissingBytesError:
        return None


def _offers(workspace: Workspace, newest: RecordedRound, image_id: str) -> Iterator[dict[str, Any]]:
    for delivery in all_deliveries(workspace):
        task = manifest_at(newest, delivery.batch).get(image_id) or manifest_at(_head(newest), delivery.batch).get(
            image_id
        )
        if task is not None:
            yield {
                "delivery": delivery.batch,
                "offered_at": delivery.created_at,
                "state": delivery.state,
                "rank": task.rank,
                "reason": task.reason,
                "uncertainty": task.uncertainty,
                "predrawn_boxes": len(task.predictions),
                "model_sha256": task.model_digest,
            }


def _head(recorded: RecordedRound) -> RecordedRound:
    """The same with today's files: the newest delivery goes out after the newest tag."""
    return RecordedRound(recorded.workspace, recorded.objects, recorded.ledger, "HEAD")


def _answers(newest: RecordedRound, image_id: str) -> list[dict[str, Any]]:
    """Every answer in the order it came in, and which one of them is learned from."""
    store = read_labels(newest.workspace.labels)
    learned = store.answers.get(image_id)
    answers: list[dict[str, Any]] = []
    for number in range(newest.number + 1):
        batch = read_batch_at(newest, number)
        for label in (*batch.images, *batch.others):
            if label.image_id == image_id:
                counts = learned is not None and (learned.batch, learned.label) == (number, label)
                answers.append(_answer(label, number, batch.provider, counts=counts))
    return answers


def _answer(label: LabeledImage, batch: int, provider: str, *, counts: bool) -> dict[str, Any]:
    return {
        "batch": batch,
        "offered_in": label.offered_in,
        "provider": provider,
        "annotator": label.annotator,
        "finished_at": label.finished_at,
        "status": label.status,
        "boxes": [box.model_dump(mode="json") for box in label.boxes],
        "seconds_spent": label.seconds_spent,
        "counts": counts,
    }


def _quarantined(workspace: Workspace, image_id: str) -> Iterator[dict[str, Any]]:
    for entry in read_entries(workspace):
        if entry.image_id == image_id:
            yield entry.model_dump(mode="json", exclude={"returned"})
