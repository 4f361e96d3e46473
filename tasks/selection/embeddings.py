"""Read embeddings from the shards of ``infer``, and put two sets of them on common ground.

Shape letters: P images of the pool, L labeled images, C channels of an image embedding, D dimensions of a region
feature.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import sum_by_image
from tasks.data.detections import ShardKind, read_shards

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingKind:
    """What is read from a shard, and how it becomes one vector an image."""

    columns: tuple[str, ...]
    vectors: Callable[[pa.Table], Embeddings]


def read_embeddings(infer: Path | None, kind: EmbeddingKind, image_ids: pd.Index) -> Embeddings:
    """Return one row for each of the pool's images that are named, in their order, (P, C).

    One shard is in memory at a time, beside the result.

    Raises:
        KeyError: an image has no embedding.
    """
    is_found = np.zeros(len(image_ids), dtype=bool)
    result = np.zeros((len(image_ids), 0), dtype=np.float32)
    for shard in _shards(infer, "pool", kind.columns):
        row = image_ids.get_indexer(pd.Index(shard["image_id"].to_pandas()))
        is_wanted = row >= 0
        if not is_wanted.any():
            continue
        vectors = kind.vectors(shard if is_wanted.all() else shard.filter(pa.array(is_wanted)))
        if not result.shape[1] and vectors.shape[1]:  # a shard without a detection does not know D
            result = np.zeros((len(image_ids), vectors.shape[1]), dtype=np.float32)
        is_found[row[is_wanted]] = True
        if vectors.shape[1]:
            result[row[is_wanted]] = vectors
    if not is_found.all():
        raise KeyError(str(image_ids[int(np.flatnonzero(~is_found)[0])]))
    return result


def read_labeled_embeddings(infer: Path | None, kind: EmbeddingKind) -> tuple[list[str], Embeddings]:
    """Return the ids of the labeled images, ascending, and their embeddings, (L, C)."""
    ids: list[str] = []
    parts: list[Embeddings] = []
    for shard in _shards(infer, "labeled", kind.columns):
        if len(shard):
            ids += shard["image_id"].to_pylist()
            parts.append(kind.vectors(shard))
    width = max((part.shape[1] for part in parts), default=0)
    parts = [part if part.shape[1] else np.zeros((len(part), width), dtype=np.float32) for part in parts]
    order = np.argsort(ids, kind="stable")
    return [ids[row] for row in order], np.concatenate(parts)[order] if parts else np.zeros((0, 0), dtype=np.float32)


def centered(vectors_PD: Embeddings, reference_LD: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Subtract the common mean of both sets, and scale each vector to length 1.

    Features after a ReLU all point into one octant, where all cosines are near 1; from their mean they spread.
    A vector of zeros stays 0: nothing was detected there, which does not make such images alike.
    """
    sets = (vectors_PD, reference_LD.reshape(-1, vectors_PD.shape[1]))
    known = [np.asarray(vectors.any(axis=1)) for vectors in sets]
    num_known = sum(int(rows.sum()) for rows in known)
    mean_D = sum(vectors.sum(axis=0, dtype=np.float64) for vectors in sets) / max(num_known, 1)
    first, second = (
        _unit(vectors - mean_D.astype(np.float32), rows) for vectors, rows in zip(sets, known, strict=True)
    )
    return first, second


def _unit(vectors: Embeddings, is_known: NDArray[np.bool_]) -> Embeddings:
    """Scale in place; the pool of a million images is not copied again."""
    vectors[~is_known] = 0
    vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), 1e-9)[:, None]
    return vectors


def _shards(infer: Path | None, kind: ShardKind, columns: Sequence[str]) -> Iterator[pa.Table]:
    return iter(()) if infer is None else read_shards(infer, kind, columns=columns)


def _image_embeddings(rows: pa.Table) -> Embeddings:
    return _flat(rows, "embedding").reshape(len(rows), -1)


def _region_embeddings(rows: pa.Table) -> Embeddings:
    classes_P = pc.list_value_length(rows["region_class_ids"]).fill_null(0).to_numpy().astype(np.int64)
    values = _flat(rows, "region_features")
    if not len(values):
        return np.zeros((len(rows), 0), dtype=np.float32)
    sums = sum_by_image(values.reshape(int(classes_P.sum()), -1), classes_P)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _flat(rows: pa.Table, column: str) -> Embeddings:
    return np.asarray(pc.list_flatten(rows[column]).to_numpy(), dtype=np.float32)


IMAGE = EmbeddingKind(("image_id", "embedding"), _image_embeddings)
"""One pooled feature vector an image."""
REGION = EmbeddingKind(("image_id", "region_class_ids", "region_features"), _region_embeddings)
"""Score-weighted sum of the features of all detected regions, of length 1; zeros without detections."""
