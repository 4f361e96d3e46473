"""Show a strategy the pool: one table of candidates in memory, and embeddings that are read when they are asked for.

Shape letters: P images, C channels of an embedding.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.data.detections import ShardKind, read_shards

Embeddings = NDArray[np.float32]


class PoolView:
    """What a strategy may know about the unlabeled images, and about the labeled ones that are covered already."""

    def __init__(self, candidates: pd.DataFrame, infer: Path | None = None) -> None:
        """Keep the table; detections are opened only when they are asked for.

        Args:
            candidates: one row per unlabeled image, ``image_id`` as its index: schemas.CANDIDATE_SCORES and the
                columns of schemas.UNCERTAINTY, plus ``expected_minutes``.
            infer: output of the stage ``infer``; None: there are no embeddings.
        """
        self.candidates = candidates
        self._infer = infer

    def embeddings(self, image_ids: Sequence[str] | None = None) -> Embeddings:
        """Return image embeddings (P, C), rows in the order of ``image_ids``; None: of all candidates.

        Raises:
            KeyError: an image has no embedding.
        """
        wanted = [str(image) for image in self.candidates.index] if image_ids is None else list(image_ids)
        ids, vectors = _read_embeddings(self._infer, "pool", pa.array(wanted, pa.string()))
        order = pd.Index(ids).get_indexer(pd.Index(wanted))
        if (order < 0).any():
            raise KeyError(wanted[int(np.flatnonzero(order < 0)[0])])
        return vectors[order]

    @cached_property
    def labeled_embeddings(self) -> Embeddings:
        """Image embeddings of the labeled images by the same teacher, (P, C) by image id."""
        ids, vectors = _read_embeddings(self._infer, "labeled", None)
        return vectors[np.argsort(ids, kind="stable")]


def _read_embeddings(infer: Path | None, kind: ShardKind, wanted: pa.Array | None) -> tuple[list[str], Embeddings]:
    """Ids and embeddings of the shards of one kind; only those of the wanted images where they are named."""
    ids: list[str] = []
    parts: list[Embeddings] = []
    shards = read_shards(infer, kind, columns=["image_id", "embedding"]) if infer is not None else iter(())
    for shard in shards:
        rows = shard if wanted is None else shard.filter(pc.is_in(shard["image_id"], value_set=wanted))
        if len(rows):
            ids += rows["image_id"].to_pylist()
            values = np.asarray(pc.list_flatten(rows["embedding"]).to_numpy(), dtype=np.float32)
            parts.append(values.reshape(len(rows), -1))
    return ids, np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
