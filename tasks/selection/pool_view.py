"""Show a strategy the pool: one table of candidates in memory, and embeddings that are read when they are asked for.

Shape letters: P images, C channels of an embedding, D dimensions of a region feature,
B boxes of a batch of images, G labeled boxes.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import sum_by_image
from tasks.data.annotations import marked_boxes
from tasks.data.detections import DetectionBatch, ShardKind, read_detection_batches, read_shards
from tasks.data.schemas import ANNOTATED
from tasks.storage import files

Embeddings = NDArray[np.float32]
_Reader = Callable[[pa.Table], Embeddings]
_IMAGE_COLUMNS = ("image_id", "embedding")
_REGION_COLUMNS = ("image_id", "region_class_ids", "region_features")


class PoolView:
    """What a strategy may know about the unlabeled images, and about the labeled ones that are covered already."""

    def __init__(
        self,
        candidates: pd.DataFrame,
        infer: Path | None = None,
        *,
        labeled: Path | None = None,
        batch_size: int = 1,
    ) -> None:
        """Keep the table; detections are opened only when they are asked for.

        Args:
            candidates: one row per unlabeled image, ``image_id`` as its index: schemas.CANDIDATE_SCORES and the
                columns of schemas.UNCERTAINTY, plus ``expected_minutes``.
            infer: output of the stage ``infer``; None: there are no detections.
            labeled: labeled images with their boxes, schemas.ANNOTATED; None: there are none.
            batch_size: images that the budget is expected to allow; for strategies that order a shortlist.
        """
        self.candidates = candidates
        self.infer = infer
        self.labeled = labeled
        self.batch_size = batch_size

    def embeddings(self, image_ids: Sequence[str] | None = None) -> Embeddings:
        """Return image embeddings (P, C), rows in the order of ``image_ids``; None: of all candidates.

        Raises:
            KeyError: an image has no embedding.
        """
        return self._of_candidates(image_ids, _IMAGE_COLUMNS, _image_embeddings)

    def region_embeddings(self, image_ids: Sequence[str] | None = None) -> Embeddings:
        """Return a vector of length 1 for what was detected on each image, (P, D).

        It has the direction of the score-weighted sum of the features of the regions; zeros for an image without
        detections. Rows and errors are those of ``embeddings``.
        """
        return self._region_embeddings if image_ids is None else self._read_region_embeddings(image_ids)

    @cached_property
    def _region_embeddings(self) -> Embeddings:
        """Of all candidates; several objectives ask for them."""
        return self._read_region_embeddings(None)

    def _read_region_embeddings(self, image_ids: Sequence[str] | None) -> Embeddings:
        return self._of_candidates(image_ids, _REGION_COLUMNS, _region_embeddings)

    @cached_property
    def labeled_embeddings(self) -> Embeddings:
        """Image embeddings of the labeled images by the same teacher, (P, C) by image id."""
        return self._of_labeled(_IMAGE_COLUMNS, _image_embeddings)

    @cached_property
    def labeled_region_embeddings(self) -> Embeddings:
        """Region embeddings of the labeled images by the same teacher, (P, D) by image id."""
        return self._of_labeled(_REGION_COLUMNS, _region_embeddings)

    @cached_property
    def labeled_boxes(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes of all labeled images, (G, 4) px, and their classes, (G,)."""
        if self.labeled is None:
            return np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
        rows = files.read_table(self.labeled, ANNOTATED, columns=["boxes_xyxy", "class_ids", "is_crowd"]).to_pylist()
        marked = [marked_boxes(row) for row in rows]  # crowd regions are no boxes
        boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes_xyxy for one in marked)])
        return boxes, np.concatenate([np.zeros(0, dtype=np.int64), *(one.class_ids for one in marked)])

    def sum_over_boxes(self, term: Callable[[DetectionBatch], NDArray[Any]]) -> NDArray[np.float64]:
        """Sum a number of each detection over the detections of every candidate, (P,); 0 without detections.

        Args:
            term: gives the numbers of a batch of images, (B,). Detections are read batch by batch.
        """
        total = np.zeros(len(self.candidates))
        row_of = pd.Index([str(image) for image in self.candidates.index])
        for batch in read_detection_batches(self.infer) if self.infer is not None else ():
            if len(batch.scores):
                rows = row_of.get_indexer(pd.Index(batch.image_ids))
                sums = sum_by_image(term(batch), batch.num_boxes)
                total[rows[rows >= 0]] = sums[rows >= 0]
        return total

    def _of_candidates(self, image_ids: Sequence[str] | None, columns: Sequence[str], read: _Reader) -> Embeddings:
        wanted = [str(image) for image in self.candidates.index] if image_ids is None else list(image_ids)
        ids, vectors = _read(self.infer, "pool", columns, read, pa.array(wanted, pa.string()))
        order = pd.Index(ids).get_indexer(pd.Index(wanted))
        if (order < 0).any():
            raise KeyError(wanted[int(np.flatnonzero(order < 0)[0])])
        return vectors[order]

    def _of_labeled(self, columns: Sequence[str], read: _Reader) -> Embeddings:
        ids, vectors = _read(self.infer, "labeled", columns, read, None)
        return vectors[np.argsort(ids, kind="stable")]


def _read(
    infer: Path | None, kind: ShardKind, columns: Sequence[str], read: _Reader, wanted: pa.Array | None
) -> tuple[list[str], Embeddings]:
    """Ids and vectors of the shards of one kind; only those of the wanted images where they are named."""
    ids: list[str] = []
    parts: list[Embeddings] = []
    for shard in read_shards(infer, kind, columns=columns) if infer is not None else ():
        rows = shard if wanted is None else shard.filter(pc.is_in(shard["image_id"], value_set=wanted))
        if len(rows):
            ids += rows["image_id"].to_pylist()
            parts.append(read(rows))
    widest = max((part.shape[1] for part in parts), default=0)  # a shard without a detection does not know D
    parts = [part if part.shape[1] else np.zeros((len(part), widest), dtype=np.float32) for part in parts]
    return ids, np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _image_embeddings(rows: pa.Table) -> Embeddings:
    return _flat(rows, "embedding").reshape(len(rows), -1)


def _region_embeddings(rows: pa.Table) -> Embeddings:
    classes_P = pc.list_value_length(rows["region_class_ids"]).fill_null(0).to_numpy()
    values = _flat(rows, "region_features")
    if not len(values):
        return np.zeros((len(rows), 0), dtype=np.float32)
    sums = np.zeros((len(rows), len(values) // int(classes_P.sum())), dtype=np.float32)
    np.add.at(sums, np.repeat(np.arange(len(rows)), classes_P), values.reshape(-1, sums.shape[1]))
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9))


def _flat(rows: pa.Table, column: str) -> Embeddings:
    return np.asarray(pc.list_flatten(rows[column]).to_numpy(), dtype=np.float32)
