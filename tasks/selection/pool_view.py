"""Show a strategy the pool: one table of candidates in memory, and embeddings that are read when they are asked for.

Shape letters: P candidates, L labeled images, C channels of an embedding, D dimensions of a region feature,
B boxes of a batch of images, G labeled boxes.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import sum_by_image
from tasks.data.annotations import marked_boxes
from tasks.data.detections import DetectionBatch, read_detection_batches, read_shards
from tasks.data.label_store import read_labels
from tasks.data.schemas import ANNOTATED
from tasks.runtime.errors import UserError
from tasks.selection.earlier_picks import EarlierPick
from tasks.selection.embeddings import (
    IMAGE,
    REGION,
    Embeddings,
    centered,
    read_embeddings,
    read_labeled_embeddings,
)
from tasks.selection.refusals import refused_images
from tasks.storage import files


class PoolView:
    """What a strategy may know about the unlabeled images, and about the labeled ones that are covered already."""

    def __init__(
        self,
        candidates: pd.DataFrame,
        infer: Path | None = None,
        *,
        labeled: Path | None = None,
        labels: Path | None = None,
        earlier_picks: Callable[[], Sequence[EarlierPick]] = tuple,
        batch_size: int = 1,
    ) -> None:
        """Keep the table; detections are opened only when they are asked for.

        Args:
            candidates: one row per unlabeled image, ``image_id`` as its index: schemas.CANDIDATE_SCORES and the
                columns of schemas.UNCERTAINTY, plus ``expected_minutes``.
            infer: output of the stage ``infer``; None: there are no detections.
            labeled: labeled images with their boxes, schemas.ANNOTATED; None: there are none.
            labels: folder of label batches; None: nothing is known of what people answered.
            earlier_picks: gives the answered picks of all batches.
            batch_size: images that the budget is expected to allow; for strategies that order a shortlist.
        """
        self.candidates = candidates
        self.infer = infer
        self.labeled = labeled
        self.labels = labels
        self._read_earlier_picks = earlier_picks
        self.batch_size = batch_size

    def with_candidates(self, candidates: pd.DataFrame, *, batch_size: int) -> "PoolView":
        """Return a view of other images of the same pool; arguments are those of the constructor."""
        return PoolView(
            candidates,
            self.infer,
            labeled=self.labeled,
            labels=self.labels,
            earlier_picks=self._read_earlier_picks,
            batch_size=batch_size,
        )

    @cached_property
    def image_ids(self) -> pd.Index:
        """Ids of the candidates as texts, in their order."""
        ids: pd.Index = self.candidates.index.astype(str)
        return ids

    def embeddings(self, image_ids: Sequence[str] | None = None) -> Embeddings:
        """Return image embeddings (P, C), rows in the order of ``image_ids``; None: of all candidates.

        Raises:
            KeyError: an image has no embedding.
        """
        return read_embeddings(self.infer, IMAGE, self.image_ids if image_ids is None else pd.Index(image_ids))

    def region_embeddings(self, image_ids: Sequence[str] | None = None) -> Embeddings:
        """Return a vector of length 1 for what was detected on each image, (P, D).

        It has the direction of the score-weighted sum of the features of the regions; zeros for an image without
        detections. Rows and errors are those of ``embeddings``.
        """
        return read_embeddings(self.infer, REGION, self.image_ids if image_ids is None else pd.Index(image_ids))

    @cached_property
    def labeled_embeddings(self) -> Embeddings:
        """Image embeddings of the labeled images by the same teacher, (L, C) by image id."""
        return read_labeled_embeddings(self.infer, IMAGE)[1]

    @cached_property
    def labeled_region_embeddings(self) -> Embeddings:
        """Region embeddings of the labeled images by the same teacher, (L, D) by image id."""
        return self._labeled_regions[1]

    @property
    def labeled_image_ids(self) -> list[str]:
        """Ids of the labeled images that have embeddings, ascending: the rows of the two above."""
        return self._labeled_regions[0]

    @cached_property
    def _labeled_regions(self) -> tuple[list[str], Embeddings]:
        return read_labeled_embeddings(self.infer, REGION)

    @cached_property
    def content(self) -> tuple[Embeddings, Embeddings]:
        """What is known of the content of the candidates (P, D) and of the labeled images (L, D), ``centered``.

        Region embeddings where the teacher detects anything; image embeddings where it detects nothing in the whole
        pool. Several objectives ask for them.
        """
        regions = self.region_embeddings()
        if regions.any():
            return centered(regions, self.labeled_region_embeddings)
        return centered(self.embeddings(), self.labeled_embeddings)

    @cached_property
    def earlier_picks(self) -> Sequence[EarlierPick]:
        """What the picks of earlier rounds turned out to be worth."""
        return self._read_earlier_picks()

    @cached_property
    def refused_image_ids(self) -> frozenset[str]:
        """Images whose pre-drawn boxes a person deleted, all of them, and drew none."""
        return frozenset() if self.labels is None else refused_images(read_labels(self.labels))

    @cached_property
    def labeled_boxes(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes of all labeled images, (G, 4) px, and their classes, (G,)."""
        if self.labeled is None:
            return np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
        rows = files.read_table(self.labeled, ANNOTATED, columns=["boxes_xyxy", "class_ids", "is_crowd"]).to_pylist()
        marked = [marked_boxes(row) for row in rows]  # crowd regions are no boxes
        boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes_xyxy for one in marked)])
        return boxes, np.concatenate([np.zeros(0, dtype=np.int64), *(one.class_ids for one in marked)])

    def column_of_detections(self, name: str) -> NDArray[np.float64]:
        """Return a column of schemas.DETECTIONS with one number an image for every candidate, (P,).

        Raises:
            UserError: the stage ``infer`` did not measure it.
        """
        result = np.full(len(self.candidates), np.nan)
        for shard in read_shards(self.infer, columns=["image_id", name]) if self.infer is not None else ():
            rows = self.image_ids.get_indexer(pd.Index(shard["image_id"].to_pandas()))
            result[rows[rows >= 0]] = shard[name].to_numpy().astype(np.float64)[rows >= 0]
        if np.isnan(result).any():
            where = self.infer if self.infer is not None else "infer"
            image = self.image_ids[int(np.flatnonzero(np.isnan(result))[0])]
            raise UserError(where, f"{name} of image {image} is missing, expected a number", "Run: dvc repro infer")
        return result

    def sum_over_boxes(self, term: Callable[[DetectionBatch], NDArray[Any]]) -> NDArray[np.float64]:
        """Sum a number of each detection over the detections of every candidate, (P,); 0 without detections.

        Args:
            term: gives the numbers of a batch of images, (B,). Detections are read batch by batch.
        """
        total = np.zeros(len(self.candidates))
        for batch in read_detection_batches(self.infer) if self.infer is not None else ():
            if len(batch.scores):
                rows = self.image_ids.get_indexer(pd.Index(batch.image_ids))
                sums = sum_by_image(term(batch), batch.num_boxes)
                total[rows[rows >= 0]] = sums[rows >= 0]
        return total
