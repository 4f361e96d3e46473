"""Estimate the teacher's error on the pool from images that were drawn at random (docs/method.md#pool-error)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron_ext.detection_loss import match_detections
from detectron_ext.pool_error import estimate_mean
from detectron_ext.uncertainty_metrics import Floats
from tasks.data.dwa_samples import ReviewedImage, realized_loss_of

LEVEL = 0.95
"""Nominal coverage of the intervals."""
QUANTITIES = ("loss", "misses")


def pool_error_document(
    batch_images: Sequence[ReviewedImage], calibration_images: Sequence[ReviewedImage], num_classes: int, gamma: float
) -> dict[str, Any]:
    """Estimate realized loss (all class weights 1) and missed objects per image of the pool.

    ``drawn``: over the pools of all rounds, each by the teacher of its round, from the uniform draws of the batches.
    ``calibration``: by the current teacher, over the pool that the calibration images were drawn from at first.
    ``chosen``: the plain means of the images that the strategy chose, to be compared with those drawn.

    Args:
        batch_images: reviewed images of all batches.
        calibration_images: with the detections of the current teacher.
        num_classes: K.
        gamma: exponent of the focal loss.
    """
    drawn = [image for image in batch_images if image.is_random_pick]
    chosen = [image for image in batch_images if not image.is_random_pick]
    answered = Counter(image.group for image in drawn)
    weights_n = np.array([image.num_candidates / answered[image.group] for image in drawn])
    chosen_errors = _errors(chosen, num_classes, gamma)
    return {
        "level": LEVEL,
        "drawn": _estimates(_errors(drawn, num_classes, gamma), weights_n),
        "calibration": _estimates(_errors(calibration_images, num_classes, gamma), np.ones(len(calibration_images))),
        "chosen": {"num_images": len(chosen)}
        | {
            name: {"mean": round(float(chosen_errors[:, column].mean()), 6)} if chosen else None
            for column, name in enumerate(QUANTITIES)
        },
    }


def _errors(images: Sequence[ReviewedImage], num_classes: int, gamma: float) -> Floats:
    """Return the quantities of each image, (n, 2)."""
    rows = [(_loss(image, num_classes, gamma), num_missed(image)) for image in images]
    return np.array(rows, dtype=np.float64).reshape(-1, len(QUANTITIES))


def _loss(image: ReviewedImage, num_classes: int, gamma: float) -> float:
    ones = np.ones(num_classes)
    return realized_loss_of(image, num_classes, gamma).weighted(ones, ones)


def num_missed(image: ReviewedImage) -> int:
    """Count the labeled objects that no detection found."""
    matched_N = match_detections(image.found.boxes_xyxy, image.found.scores, image.boxes_xyxy)
    return len(image.boxes_xyxy) - int((matched_N >= 0).sum())


def _estimates(errors: Floats, weights_n: Floats) -> dict[str, Any]:
    document: dict[str, Any] = {"num_images": len(errors)}
    for column, name in enumerate(QUANTITIES):
        found = estimate_mean(errors[:, column], weights_n, level=LEVEL)
        document[name] = None if found is None else {key: round(v, 6) for key, v in found._asdict().items()}
    return document
