"""Compute the log-average miss rate, the measure of pedestrian detection.

P. Dollar, C. Wojek, B. Schiele, P. Perona, Pedestrian Detection: An Evaluation of the State of the Art, PAMI 34(4),
2012.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa

from tasks.evaluation.coco_matching import Floats, Matches, match_detections

REFERENCE_FPPI: Floats = np.logspace(-2.0, 0.0, 9, dtype=np.float64)
"""False positives per image at which the miss rate is read off."""
_MIN_MISS_RATE = 1e-10
_IOU_50 = 0


class MissRateMetrics(TypedDict):
    """Log-average miss rate in percent, lower is better; None for a class without an object."""

    mean: float | None
    per_class: dict[str, float | None]


def log_average_miss_rates(truth: pa.Table, predictions: pa.Table, classes: Sequence[str]) -> MissRateMetrics:
    """Compute the geometric mean of the miss rate at nine rates of false positives from 0.01 to 1 an image, at IoU 0.5.

    Args:
        truth: schemas.ANNOTATED; crowds are ignored.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        classes: names by class index.
    """
    matches = match_detections(truth, predictions, len(classes))
    per_class = {name: _of_class(found, truth.num_rows) for name, found in zip(classes, matches, strict=True)}
    known = [value for value in per_class.values() if value is not None]
    return MissRateMetrics(mean=float(np.mean(known)) if known else None, per_class=per_class)


def _of_class(matches: Matches, num_images: int) -> float | None:
    num_objects = int(matches.num_objects.sum())
    if not num_objects:
        return None
    counted = ~matches.is_ignored[_IOU_50]
    found = matches.is_true_positive[_IOU_50][counted]
    false_per_image = np.cumsum(~found) / num_images
    recall = np.cumsum(found) / num_objects
    # The last point of the curve up to each reference; before the first detection everything is missed.
    position = np.searchsorted(false_per_image, REFERENCE_FPPI, side="right")
    miss_rate = 1 - np.concatenate([[0.0], recall])[position]
    return float(100 * np.exp(np.log(np.maximum(miss_rate, _MIN_MISS_RATE)).mean()))
