"""Stored detections, read back shard by shard: memory does not grow with the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.data import schemas
from tasks.storage import files


@dataclass(frozen=True)
class StoredDetections:
    """One row of contracts.DETECTIONS as arrays; N boxes, K foreground classes."""

    image_id: str
    boxes_xyxy: NDArray[np.float32]  # (N, 4) px of the original
    scores: NDArray[np.float32]  # (N,)
    class_ids: NDArray[np.int64]  # (N,)
    class_probs: NDArray[np.float32]  # (N, K+1); (0, 0) without boxes


def read_detections(folder: Path) -> Iterator[StoredDetections]:
    """All detections of an ``infer`` folder, by image id, one shard in memory at a time."""
    for shard in read_shards(folder):
        yield from detections_from_table(shard)


def read_shards(folder: Path) -> Iterator[pa.Table]:
    """The shards of an ``infer`` folder as tables, one in memory at a time."""
    for path in sorted(folder.glob("shard-*.parquet")):
        yield files.read_table(path, schemas.DETECTIONS)


def detections_from_table(table: pa.Table) -> Iterator[StoredDetections]:
    """Detections of a table that has the columns of contracts.DETECTIONS."""
    columns = table.select(["image_id", "boxes_xyxy", "scores", "class_ids", "class_probs"])
    for row in columns.to_pylist():
        yield _from_row(row)


def _from_row(row: dict[str, Any]) -> StoredDetections:
    count = len(row["scores"])
    return StoredDetections(
        row["image_id"],
        np.array(row["boxes_xyxy"], dtype=np.float32).reshape(count, 4),
        np.array(row["scores"], dtype=np.float32),
        np.array(row["class_ids"], dtype=np.int64),
        np.array(row["class_probs"], dtype=np.float32).reshape(count, -1 if count else 0),
    )
