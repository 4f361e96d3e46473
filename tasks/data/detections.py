"""Read stored detections shard by shard, so that memory does not grow with the pool."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.detection_loss import counts_as_detection
from tasks.data import schemas
from tasks.data.annotations import MarkedBoxes
from tasks.storage import files

_BATCH_COLUMNS = ["image_id", "boxes_xyxy", "scores", "class_ids", "class_probs", "stability", "residual_mass"]


@dataclass(frozen=True)
class StoredDetections:
    """One row of schemas.DETECTIONS as arrays; N boxes, K foreground classes."""

    image_id: str
    boxes_xyxy: NDArray[np.float32]  # (N, 4) px of the original
    scores: NDArray[np.float32]  # (N,)
    class_ids: NDArray[np.int64]  # (N,)
    class_probs: NDArray[np.float32]  # (N, K+1); (0, 0) without boxes
    stability: NDArray[np.float32]  # (N,) IoU with the box of a second regression pass; 1 where there was none
    residual_mass: float  # sum of the scores of boxes below the reporting threshold


@dataclass(frozen=True)
class DetectionBatch:
    """The boxes of P images one after another; B boxes in all, K foreground classes."""

    image_ids: list[str]
    num_boxes: NDArray[np.int64]  # (P,), their sum is B
    boxes_xyxy: NDArray[np.float32]  # (B, 4) px of the original
    scores: NDArray[np.float32]  # (B,)
    class_ids: NDArray[np.int64]  # (B,)
    class_probs: NDArray[np.float16]  # (B, K+1); (0, 0) without boxes
    stability: NDArray[np.float32]  # (B,) IoU with the box of a second regression pass; 1 where there was none
    residual_mass: NDArray[np.float64]  # (P,)
    objectness_entropy: NDArray[np.float64]  # (P,) docs/method.md#objectness-entropy; NaN where it was not measured


def read_detections(folder: Path, image_ids: Collection[str] | None = None) -> Iterator[StoredDetections]:
    """Yield the detections of an ``infer`` folder by image id, one shard in memory at a time.

    Of a shard without a wanted image only the ids are read: few images of a large pool cost little.

    Args:
        folder: output of infer.
        image_ids: the images wanted; None for all.
    """
    wanted_ids = None if image_ids is None else pa.array(image_ids, pa.string())
    for path in shard_paths(folder):
        if wanted_ids is None:
            yield from detections_from_table(_read_shard(path, _BATCH_COLUMNS))
            continue
        is_wanted = pc.is_in(_read_shard(path, ["image_id"])["image_id"], value_set=wanted_ids)
        if pc.any(is_wanted).as_py():
            yield from detections_from_table(_read_shard(path, _BATCH_COLUMNS).filter(is_wanted))


def outside_crowds(found: StoredDetections, marked: MarkedBoxes) -> StoredDetections:
    """Leave out detections in a crowd region of their class that fit no labeled box (docs/method.md#crowd-regions)."""
    counts_N = counts_as_detection(
        found.boxes_xyxy, found.class_ids, marked.boxes_xyxy, marked.crowd_xyxy, marked.crowd_class_ids
    )
    if counts_N.all():
        return found
    return replace(
        found,
        boxes_xyxy=found.boxes_xyxy[counts_N],
        scores=found.scores[counts_N],
        class_ids=found.class_ids[counts_N],
        class_probs=found.class_probs[counts_N],
        stability=found.stability[counts_N],
    )


def read_detection_batches(
    folder: Path, kind: "ShardKind" = "pool", *, batch_size: int = 1024
) -> Iterator[DetectionBatch]:
    """Yield the detections of an ``infer`` folder by image id, at most ``batch_size`` images at a time.

    No Python object is made for a box: this is for computations over the whole pool.
    """
    pending: list[pa.Table] = []
    for shard in read_shards(folder, kind, columns=[*_BATCH_COLUMNS, "objectness_entropy_raw"]):
        pending.append(shard)
        if sum(len(table) for table in pending) >= batch_size:  # shards may be far smaller than a batch
            yield from _batches_from_table(pa.concat_tables(pending), batch_size)
            pending = []
    if pending:
        yield from _batches_from_table(pa.concat_tables(pending), batch_size)


def _batches_from_table(table: pa.Table, batch_size: int) -> Iterator[DetectionBatch]:
    for start in range(0, len(table), batch_size):
        rows = table.slice(start, batch_size)
        scores_B, stability_B = _flatten(rows["scores"]), _flatten(rows["stability"])
        yield DetectionBatch(
            rows["image_id"].to_pylist(),
            pc.list_value_length(rows["scores"]).to_numpy().astype(np.int64),
            _flatten(rows["boxes_xyxy"]).reshape(len(scores_B), 4),
            scores_B,
            _flatten(rows["class_ids"]).astype(np.int64),
            _flatten(rows["class_probs"]).reshape(len(scores_B), -1 if len(scores_B) else 0),
            stability_B if len(stability_B) == len(scores_B) else np.ones(len(scores_B), dtype=np.float32),
            rows["residual_mass"].to_numpy().astype(np.float64),
            rows["objectness_entropy_raw"].to_numpy().astype(np.float64),
        )


def _flatten(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(pc.list_flatten(column).to_numpy())


ShardKind = Literal["pool", "labeled"]
"""``pool``: unlabeled and calibration images; ``labeled``: images that the teacher was trained on."""

SHARD_PREFIX: Mapping[ShardKind, str] = {"pool": "shard", "labeled": "labeled"}


def read_shards(folder: Path, kind: ShardKind = "pool", *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the shards of an ``infer`` folder as tables, one in memory at a time; None: all columns."""
    for path in shard_paths(folder, kind):
        yield _read_shard(path, columns)


def _read_shard(path: Path, columns: Sequence[str] | None) -> pa.Table:
    return files.read_table(path, schemas.DETECTIONS, columns=columns)


def shard_paths(folder: Path, kind: ShardKind = "pool") -> list[Path]:
    """Return the shards of an ``infer`` folder, in the order of their image ids."""
    return sorted(folder.glob(f"{SHARD_PREFIX[kind]}-*.parquet"))


def detections_from_table(table: pa.Table) -> Iterator[StoredDetections]:
    """Yield the detections of a table that has the columns of schemas.DETECTIONS."""
    for row in table.select(_BATCH_COLUMNS).to_pylist():
        yield _from_row(row)


def _from_row(row: dict[str, Any]) -> StoredDetections:
    count = len(row["scores"])
    return StoredDetections(
        row["image_id"],
        np.array(row["boxes_xyxy"], dtype=np.float32).reshape(count, 4),
        np.array(row["scores"], dtype=np.float32),
        np.array(row["class_ids"], dtype=np.int64),
        np.array(row["class_probs"], dtype=np.float32).reshape(count, -1 if count else 0),
        np.array(row["stability"] or np.ones(count), dtype=np.float32),
        float(row["residual_mass"]),
    )
