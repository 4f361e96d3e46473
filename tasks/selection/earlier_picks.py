"""What the images that were picked before turned out to be worth, and what they cost (docs/method.md#portfolio)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.data.dwa_samples import ReviewedImage, realized_loss_of, reviewed_batch_images
from tasks.data.label_store import read_labels
from tasks.data.schemas import LabeledImage
from tasks.selection.annotation_cost import AnnotationCost

_MIN_PAIR_IOU = 0.1  # as for a badly placed box, docs/method.md#box-errors
_MIN_MINUTES = 1 / 60
_MAX_DURATION_RATIO = 5.0  # a clock that ran on through a break would be held against the strategy


@dataclass(frozen=True)
class EarlierPick:
    """An image that was picked, and is labeled since."""

    image_id: str
    batch: int
    """Batch it was offered in: losses are those of the teacher of the round before."""
    picked_by: str
    """Strategy, or ``random`` for a uniform draw."""
    classification_loss: float
    """Realized loss with all class weights 1 (docs/method.md#eq-11)."""
    localization_loss: float
    """Sum of 1 - IoU over the objects that a detection overlaps."""
    minutes: float
    """Measured; expected from the number of boxes where no time was measured, or five times the expected one."""


def read_earlier_picks(
    labels: Path, detections_at_selection: Path, classes: Sequence[str], gamma: float, cost: AnnotationCost
) -> list[EarlierPick]:
    """Return the answered picks of all batches.

    Args:
        labels: folder of label batches.
        detections_at_selection: folder of the detections stored per batch.
        classes: class names in the order of their indices.
        gamma: exponent of the focal loss.
        cost: minutes of an answer whose time was not measured.

    Raises:
        UserError: a label batch or its stored detections are unreadable.
    """
    answers = read_labels(labels).current
    picks = []
    for image in reviewed_batch_images(labels, detections_at_selection, classes, None):
        label = answers[image.found.image_id].picked  # a check takes minutes of its own, which the pick did not cost
        picks.append(
            EarlierPick(
                image.found.image_id,
                image.group,
                "random" if image.is_random_pick else image.picked_by,
                _classification_loss(image, len(classes), gamma),
                localization_loss(image.found.boxes_xyxy, image.boxes_xyxy),
                _minutes(label, cost),
            )
        )
    return picks


def _minutes(label: LabeledImage, cost: AnnotationCost) -> float:
    expected = max(cost.minutes_per_image + cost.minutes_per_box * len(label.boxes), _MIN_MINUTES)
    measured = label.seconds_spent / 60 if label.seconds_spent else expected
    return max(measured if measured <= _MAX_DURATION_RATIO * expected else expected, _MIN_MINUTES)


def _classification_loss(image: ReviewedImage, num_classes: int, gamma: float) -> float:
    ones = np.ones(num_classes)
    return realized_loss_of(image, num_classes, gamma).weighted(ones, ones)


def localization_loss(boxes_N4: NDArray[np.floating[Any]], gt_boxes_G4: NDArray[np.floating[Any]]) -> float:
    """Sum 1 - IoU over detections and objects under the assignment with the largest sum of IoU, pairs from 0.1 on.

    What was missed altogether is a classification loss, not one of place.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import, so only where it is used

    iou_NG = pairwise_iou(boxes_N4, gt_boxes_G4)
    rows, columns = linear_sum_assignment(np.where(iou_NG >= _MIN_PAIR_IOU, iou_NG, 0.0), maximize=True)
    iou = iou_NG[rows, columns]
    return float((1 - iou[iou >= _MIN_PAIR_IOU]).sum())
