"""Gather what a model found on the images that are to be labeled, and on labeled images that it has not seen.

Sets of images (docs/method.md#autolabel): the *pool*, unlabeled images that are not with annotators; the
*sample*, labeled images that were drawn at random and whose labels the model was not trained on; and the *chosen* ones,
which a strategy took out of the pool, so that the pool is no longer quite what the sample was drawn from. *Validation*
images only plan the tests: they had a say in which model is the champion.

Shape shorthand: P images of a set, B their detections.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detectron_ext.detection_loss import match_detections
from tasks.data import schemas
from tasks.data.annotations import MarkedBoxes, labeled_boxes, marked_boxes
from tasks.data.detections import StoredDetections, outside_crowds, read_detection_batches
from tasks.data.label_store import LabelStore, read_labels
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ModelRef:
    """The model whose detections are accepted."""

    round_number: int
    """Round that trained it: no label of a later batch was among its training data."""
    version: int
    """Of the registered model."""
    sha256: str
    """Of the teacher's file; the stored detections carry it."""


@dataclass(frozen=True)
class FoundBoxes:
    """The detections of P images one after another."""

    image_ids: list[str]
    num_boxes: Ints  # (P,), their sum is B
    boxes_xyxy: NDArray[np.float32]  # (B, 4) px of the original
    scores: NDArray[np.float32]  # (B,)
    class_ids: Ints  # (B,)
    residual_mass: NDArray[np.float64]  # (P,) sum of the scores below the reporting threshold

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @cached_property
    def image_of_box(self) -> Ints:
        """Position of the image of each detection, (B,)."""
        return np.repeat(np.arange(len(self)), self.num_boxes)

    def subset(self, keep_P: Bools) -> "FoundBoxes":
        """Return some of the images."""
        keep_B = np.repeat(keep_P, self.num_boxes)
        return FoundBoxes(
            [image_id for image_id, keep in zip(self.image_ids, keep_P, strict=True) if keep],
            self.num_boxes[keep_P],
            self.boxes_xyxy[keep_B],
            self.scores[keep_B],
            self.class_ids[keep_B],
            self.residual_mass[keep_P],
        )


@dataclass(frozen=True)
class JudgedBoxes:
    """The detections on the sample, compared with the labels."""

    found: FoundBoxes
    """Without those in crowd regions of their class, which are neither right nor wrong."""
    is_right: Bools  # (B,)
    num_missed: Ints  # (P,) labeled objects that no detection found

    def subset(self, keep_P: Bools) -> "JudgedBoxes":
        """Return some of the images."""
        keep_B = np.repeat(keep_P, self.found.num_boxes)
        return JudgedBoxes(self.found.subset(keep_P), self.is_right[keep_B], self.num_missed[keep_P])

    def is_image_right(self, kept_B: Bools) -> Bools:
        """Whether some of the detections are exactly the objects of their image, (P,): none wrong, none missing.

        Args:
            kept_B: the detections that count, each with all of its class and image that have a better score.
        """
        num_errors_P = np.bincount(self.found.image_of_box[kept_B != self.is_right], minlength=len(self.found))
        return np.asarray((num_errors_P == 0) & (self.num_missed == 0))


@dataclass(frozen=True)
class Evidence:
    """The three sets of images, by one model."""

    pool: FoundBoxes
    sample: JudgedBoxes
    chosen: FoundBoxes
    """Those of them that the model's detections are known of."""
    num_chosen: int
    num_calibration: int
    """Images of the sample that are calibration images; the others are random draws of batches that came back."""
    validation: JudgedBoxes
    """From these it is guessed where a test is most likely to succeed. That they are another model's, or that there
    are none, costs labels but breaks no promise."""

    @property
    def chosen_factor(self) -> float:
        """Factor that stands for the chosen images without detections, such as those that people skipped."""
        return self.num_chosen / max(len(self.chosen), 1)


def find_stored_detections(workspace: Workspace, model: ModelRef) -> Path | None:
    """Return the folder of the stage ``infer`` where its detections are the model's, and of all images that count."""
    folder = workspace.derived("infer")
    digests: set[str] = set()
    for path in folder.glob("*.parquet"):
        digests |= set(pq.read_table(path, columns=["model_digest"])["model_digest"].unique().to_pylist())
    return folder if digests == {model.sha256} else None


def gather_evidence(
    workspace: Workspace,
    model: ModelRef,
    detections: Path,
    *,
    classes: list[str],
    open_batches: Mapping[str, int],
    min_iou: float,
    score_threshold: float,
) -> Evidence:
    """Read the detections of a model, and compare those on the sample with the labels.

    Args:
        workspace: the campaign.
        model: whose detections they are.
        detections: folder of the stage ``infer``, or one with the same files.
        classes: class names in the order of their indices.
        open_batches: images that are with annotators, and the batch each was offered in.
        min_iou: ``autolabel.box_iou``.
        score_threshold: ``infer.score_threshold``: validation detections below it only count as residual mass.

    Raises:
        UserError: a table is missing or malformed, or an unlabeled image has no detections.
    """
    assembled = workspace.derived("assemble")
    store = read_labels(workspace.labels)
    unlabeled = files.read_table(assembled / "unlabeled.parquet", schemas.UNLABELED, columns=["image_id"])
    rows = files.read_table(assembled / "calibration.parquet", schemas.ANNOTATED).to_pylist()
    truth = {row["image_id"]: marked_boxes(row) for row in rows}
    num_calibration = len(truth)
    truth |= _random_returns(workspace, store, model, classes)
    chosen_ids = _chosen(workspace, store, open_batches)
    pool_ids = set(unlabeled["image_id"].to_pylist()) - set(store.current) - set(open_batches)
    found = read_found_boxes(detections)
    positions = pd.Index(found.image_ids)
    missing = sorted(pool_ids - set(found.image_ids))
    if missing:
        problem = f"unlabeled images without detections are {len(missing)} (first: {missing[0]}), expected 0"
        raise UserError(detections, problem, "Finish the round: gleaner run")
    judged = judge(found.subset(positions.isin(truth.keys())), truth, min_iou)
    return Evidence(
        validation=read_validation(workspace, min_iou=min_iou, score_threshold=score_threshold),
        pool=found.subset(positions.isin(pool_ids)),
        sample=judged,
        chosen=found.subset(positions.isin(chosen_ids)),
        num_chosen=len(chosen_ids),
        num_calibration=len(set(judged.found.image_ids) & {row["image_id"] for row in rows}) if num_calibration else 0,
    )


def read_validation(workspace: Workspace, *, min_iou: float, score_threshold: float) -> JudgedBoxes:
    """Compare the newest teacher's detections on the validation images with the labels; without them, of no image."""
    predictions = workspace.derived("evaluate") / "predictions.parquet"
    rows = []
    if predictions.is_file():
        table = files.read_table(predictions, schemas.PREDICTIONS)
        rows = [row for row in table.to_pylist() if row["model"] == "teacher"]
    val = files.read_table(workspace.derived("assemble") / "val.parquet", schemas.ANNOTATED).to_pylist() if rows else []
    truth = {row["image_id"]: marked_boxes(row) for row in val}
    rows = [row for row in rows if row["image_id"] in truth]
    scores = [np.array(row["scores"], dtype=np.float32) for row in rows]
    kept = [scores_N >= score_threshold for scores_N in scores]
    found = FoundBoxes(
        [row["image_id"] for row in rows],
        np.array([kept_N.sum() for kept_N in kept], dtype=np.int64),
        _concatenated(
            [np.reshape(row["boxes_xyxy"], (-1, 4))[k] for row, k in zip(rows, kept, strict=True)],
            np.zeros((0, 4), np.float32),
        ),
        _concatenated([s[k] for s, k in zip(scores, kept, strict=True)], np.zeros(0, np.float32)),
        _concatenated(
            [np.array(row["class_ids"])[k] for row, k in zip(rows, kept, strict=True)], np.zeros(0, np.int64)
        ),
        np.array([s[~k].sum() for s, k in zip(scores, kept, strict=True)], dtype=np.float64),
    )
    return judge(found, truth, min_iou)


def _concatenated(parts: list[NDArray[Any]], blank: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([blank, *(part.astype(blank.dtype) for part in parts)])


def _random_returns(
    workspace: Workspace, store: LabelStore, model: ModelRef, classes: list[str]
) -> dict[str, MarkedBoxes]:
    """Return the labels of images that were drawn at random after the model was trained, by image id."""
    drawn_of: dict[int, set[str]] = {}
    truth = {}
    for image_id, answer in store.current.items():
        batch = answer.picked.offered_batch
        if batch <= model.round_number or answer.label.status == "skipped":
            continue
        drawn = drawn_of.setdefault(batch, _random_draws(workspace, batch))
        if image_id in drawn:
            truth[image_id] = labeled_boxes(answer.label, classes)
    return truth


def _chosen(workspace: Workspace, store: LabelStore, open_batches: Mapping[str, int]) -> set[str]:
    """Return the images that a strategy took out of the pool, labeled, skipped or still with annotators.

    Those of the seed batch were drawn from what was annotated at first, as the calibration images were.
    """
    offered_in = {image_id: answer.picked.offered_batch for image_id, answer in store.current.items()}
    offered_in |= open_batches
    drawn = {batch: _random_draws(workspace, batch) for batch in set(offered_in.values()) if batch}
    return {image_id for image_id, batch in offered_in.items() if batch and image_id not in drawn[batch]}


def _random_draws(workspace: Workspace, batch: int) -> set[str]:
    """Return the images of a batch that were drawn uniformly; none where nobody knows."""
    stored = workspace.detections_at_selection_batch(batch)
    path = stored if stored.is_file() else workspace.delivery(batch) / "detections.parquet"
    if not path.is_file():
        return set()
    table = pq.read_table(path, columns=["image_id", "is_random_pick"])
    return set(table.filter(table["is_random_pick"])["image_id"].to_pylist())


def read_found_boxes(folder: Path) -> FoundBoxes:
    """Read all detections of an ``infer`` folder, of the pool's images and of labeled ones."""
    batches = [*read_detection_batches(folder), *read_detection_batches(folder, "labeled")]
    empty = FoundBoxes(
        [],
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
        np.zeros(0),
    )
    if not batches:
        return empty

    def joined(name: str, blank: NDArray[Any]) -> Any:
        return np.concatenate([blank, *(getattr(batch, name) for batch in batches)])

    return FoundBoxes(
        [image_id for batch in batches for image_id in batch.image_ids],
        joined("num_boxes", empty.num_boxes),
        joined("boxes_xyxy", empty.boxes_xyxy),
        joined("scores", empty.scores),
        joined("class_ids", empty.class_ids),
        joined("residual_mass", empty.residual_mass),
    )


def judge(found: FoundBoxes, truth: Mapping[str, MarkedBoxes], min_iou: float) -> JudgedBoxes:
    """Compare detections with labels: each object counts once, for the detection of its class with the best score."""
    kept, right, missed = [], [], []
    for one in _rows(found):
        marked = truth[one.image_id]
        counted = outside_crowds(one, marked)
        is_right_N, num_missed = judge_image(
            counted.boxes_xyxy, counted.scores, counted.class_ids, marked.boxes_xyxy, marked.class_ids, min_iou
        )
        kept.append(counted)
        right.append(is_right_N)
        missed.append(num_missed)
    return JudgedBoxes(
        FoundBoxes(
            found.image_ids,
            np.array([len(one.scores) for one in kept], dtype=np.int64),
            np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes_xyxy for one in kept)]),
            np.concatenate([np.zeros(0, np.float32), *(one.scores for one in kept)]),
            np.concatenate([np.zeros(0, np.int64), *(one.class_ids for one in kept)]),
            found.residual_mass,
        ),
        np.concatenate([np.zeros(0, dtype=bool), *right]),
        np.array(missed, dtype=np.int64),
    )


def judge_image(
    boxes_N4: NDArray[Any],
    scores_N: NDArray[Any],
    class_ids_N: NDArray[Any],
    gt_boxes_G4: NDArray[Any],
    gt_class_ids_G: NDArray[Any],
    min_iou: float,
) -> tuple[Bools, int]:
    """Return whether each box of an image is an object of its class, (N,), and how many objects no box found."""
    is_right_N = np.zeros(len(scores_N), dtype=bool)
    for class_id in np.unique(class_ids_N):
        own = np.flatnonzero(class_ids_N == class_id)
        objects = gt_boxes_G4[gt_class_ids_G == class_id]
        is_right_N[own] = match_detections(boxes_N4[own], scores_N[own], objects, min_iou=min_iou) >= 0
    return is_right_N, len(gt_class_ids_G) - int(is_right_N.sum())


def _rows(found: FoundBoxes) -> Iterator[StoredDetections]:
    ends = np.cumsum(found.num_boxes)
    for position, (image_id, end) in enumerate(zip(found.image_ids, ends, strict=True)):
        rows = slice(int(end - found.num_boxes[position]), int(end))
        count = int(found.num_boxes[position])
        yield StoredDetections(
            image_id,
            found.boxes_xyxy[rows],
            found.scores[rows],
            found.class_ids[rows],
            np.zeros((count, 0), np.float32),
            np.ones(count, np.float32),
            float(found.residual_mass[position]),
        )
