"""Stored detections, read back shard by shard: memory does not grow with the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks import contracts, files


@dataclass(frozen=True)
class StoredDetections:
    """One row of contracts.DETECTIONS as arrays; N boxes, K foreground classes."""

    image_id: str
    boxes_xyxy: NDArray[np.float32]  # (N, 4) px of the original
    scores: NDArray[np.float32]  # (N,)
    labels: NDArray[np.int64]  # (N,)
    posteriors: NDArray[np.float32]  # (N, K+1); (0, 0) without boxes


def detections_in(folder: Path) -> Iterator[StoredDetections]:
    """All detections of an ``infer`` folder, by image id, one shard in memory at a time."""
    for shard in shards_in(folder):
        yield from detections_of(shard)


def shards_in(folder: Path) -> Iterator[pa.Table]:
    """The shards of an ``infer`` folder as tables, one in memory at a time."""
    for path in sorted(folder.glob("shard-*.parquet")):
        yield files.read_table(path, contracts.DETECTIONS)


def detections_of(table: pa.Table) -> Iterator[StoredDetections]:
    """Detections of a table that has the columns of contracts.DETECTIONS."""
    columns = table.select(["image_id", "boxes_xyxy", "scores", "labels", "posteriors"])
    for row in columns.to_pylist():
        yield _arrays(row)


def _arrays(row: dict[str, Any]) -> StoredDetections:
    count = len(row["scores"])
    return StoredDetections(
        row["image_id"],
        np.array(row["boxes_xyxy"], dtype=np.float32).reshape(count, 4),
        np.array(row["scores"], dtype=np.float32),
        np.array(row["labels"], dtype=np.int64),
        np.array(row["posteriors"], dtype=np.float32).reshape(count, -1 if count else 0),
    )
