"""Count which class is taken for which: a confusion matrix of detections, with background as one more class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectron_ext.detection_loss import counts_as_detection, match_detections
from tasks.data.annotations import marked_boxes
from tasks.evaluation.coco_matching import Floats, Integers

EXAMPLES_PER_ERROR = 4
"""At most this many images show one kind of error."""


@dataclass(frozen=True)
class Confusion:
    """Objects of one class that were detected as another, missed, or seen where nothing is."""

    matrix: Integers
    """(K + 1, K + 1): true class by predicted class; the last row counts detections of nothing, the last column objects
    that were missed."""
    examples: Sequence["ConfusionExample"]
    """Confusions of two classes, detections of nothing, and misses, the most frequent kinds first."""


class ConfusionExample(TypedDict):
    """One error; K stands for background."""

    image_id: str
    true_class: int
    predicted_class: int
    box_xyxy: list[float]
    """The detection's, px; of a missed object its own."""
    score: float | None
    """Of the detection; None: a missed object."""


@dataclass(frozen=True)
class _Pairs:
    """Detections and missed objects of one image, n of them."""

    image_id: str
    true_class_n: Integers
    predicted_class_n: Integers
    boxes_n4: Floats
    scores_n: Floats
    """Of a missed object its area, px2."""


def confusion(
    truth: pa.Table, predictions: pa.Table, num_classes: int, *, score_threshold: float, num_errors: int = 0
) -> Confusion:
    """Match detections with objects whatever their class, greedy by score at IoU 0.5, and count the pairs of classes.

    Args:
        truth: schemas.ANNOTATED; crowds are left out, and so are detections on them.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids.
        num_classes: K.
        score_threshold: detections below it are left out.
        num_errors: how many of the most frequent confusions of two classes get examples, and as many classes that are
            seen where nothing is, and as many that are missed.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    pairs = list(_pairs(truth, predictions, num_classes, score_threshold))
    for image in pairs:
        np.add.at(counts, (image.true_class_n, image.predicted_class_n), 1)
    errors = _frequent_errors(counts, num_errors)
    return Confusion(counts, [example for error in errors for example in _examples(pairs, *error, num_classes)])


def _frequent_errors(counts: Integers, number: int) -> list[tuple[int, int]]:
    """True and predicted class of the most frequent confusions of classes, detections of nothing, and misses."""
    background = len(counts) - 1
    classes = range(background)
    sorts = (
        [(true, predicted) for true in classes for predicted in classes if true != predicted],
        [(background, predicted) for predicted in classes],
        [(true, background) for true in classes],
    )
    return [
        error for sort in sorts for error in sorted(sort, key=lambda error: -counts[error])[:number] if counts[error]
    ]


def _examples(pairs: Sequence[_Pairs], true: int, predicted: int, num_classes: int) -> list[ConfusionExample]:
    """The surest detections of a kind of error, one an image; of missed objects the largest."""
    best: list[tuple[float, _Pairs, int]] = []
    for image in pairs:
        found = np.flatnonzero((image.true_class_n == true) & (image.predicted_class_n == predicted))
        if len(found):
            surest = int(found[image.scores_n[found].argmax()])
            best.append((float(image.scores_n[surest]), image, surest))
    best.sort(key=lambda entry: (-entry[0], entry[1].image_id))
    return [
        ConfusionExample(
            image_id=image.image_id, true_class=true, predicted_class=predicted,
            box_xyxy=[round(float(corner), 1) for corner in image.boxes_n4[position]],
            score=None if predicted == num_classes else round(score, 4),
        )
        for score, image, position in best[:EXAMPLES_PER_ERROR]
    ]  # fmt: skip


def _pairs(truth: pa.Table, predictions: pa.Table, num_classes: int, score_threshold: float) -> Iterator[_Pairs]:
    """Detections and missed objects image by image; class K where there is no partner."""
    row_of = {image_id: row for row, image_id in enumerate(predictions["image_id"].to_pylist())}
    for row in truth.to_pylist():
        marked = marked_boxes(row)
        position = row_of.get(row["image_id"])
        found = predictions.slice(position, 1) if position is not None else predictions.slice(0, 0)
        boxes = pc.list_flatten(found["boxes_xyxy"]).to_numpy().reshape(-1, 4).astype(np.float64)
        scores, class_ids = (pc.list_flatten(found[name]).to_numpy() for name in ("scores", "class_ids"))
        kept = (scores >= score_threshold) & counts_as_detection(
            boxes, class_ids, marked.boxes_xyxy, marked.crowd_xyxy, marked.crowd_class_ids
        )
        matched = match_detections(boxes[kept], scores[kept], marked.boxes_xyxy)
        true_of_detection = np.where(matched >= 0, np.append(marked.class_ids, num_classes)[matched], num_classes)
        missed = np.setdiff1d(np.arange(len(marked.class_ids)), matched)
        missed_boxes = marked.boxes_xyxy[missed]
        yield _Pairs(
            row["image_id"],
            np.concatenate([true_of_detection, marked.class_ids[missed]]).astype(np.int64),
            np.concatenate([class_ids[kept], np.full(len(missed), num_classes)]).astype(np.int64),
            np.concatenate([boxes[kept], missed_boxes]),
            np.concatenate([scores[kept], (missed_boxes[:, 2:] - missed_boxes[:, :2]).prod(axis=1)]),
        )
