"""Choose the score from which detections are used: for a wanted precision, or for the least cost of errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.evaluation.coco_matching import Floats, Matches, match_detections

ALL_CLASSES = "all classes"
_IOU_50 = 0


class ErrorCosts(NamedTuple):
    """Cost of one error of each kind, in any unit."""

    false_alarm: float
    miss: float


class OperatingPoint(NamedTuple):
    """What detections with at least this score are worth, at IoU 0.5."""

    score_threshold: float | None
    """None: no threshold does what is wanted, or using no detection costs least."""
    precision: float | None
    recall: float
    cost_per_image: float


class _Curve(NamedTuple):
    """Counts at each threshold, from using no detection to using all: entry 0 uses none."""

    score: Floats
    num_found: Floats
    num_false: Floats
    num_objects: int


def operating_points(
    truth: pa.Table, predictions: pa.Table, classes: Sequence[str], *, wanted_precision: float, costs: ErrorCosts
) -> dict[str, Any]:
    """Find the operating points of each class, and of one threshold for all of them (``ALL_CLASSES``).

    Args:
        truth: schemas.ANNOTATED; crowds are ignored.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        classes: names by class index.
        wanted_precision: in (0, 1].
        costs: of a detection of nothing, and of an object that is not found.

    Returns:
        By class name, ``at_precision``: the lowest threshold from which precision is as wanted, and ``least_cost``: the
        threshold at which errors cost least, the highest of several.
    """
    matches = match_detections(truth, predictions, len(classes))
    curves = {name: _curve([found]) for name, found in zip(classes, matches, strict=True)}
    curves[ALL_CLASSES] = _curve(matches)
    return {
        name: {
            "at_precision": _at_precision(curve, wanted_precision, costs, truth.num_rows)._asdict(),
            "least_cost": _least_cost(curve, costs, truth.num_rows)._asdict(),
        }
        for name, curve in curves.items()
    }


def _curve(matches: Sequence[Matches]) -> _Curve:
    """Count over the detections of some classes, by descending score; equal scores are used together."""
    counted = [~found.is_ignored[_IOU_50] for found in matches]
    score = np.concatenate([found.score[kept] for found, kept in zip(matches, counted, strict=True)])
    is_found = np.concatenate([found.is_true_positive[_IOU_50][k] for found, k in zip(matches, counted, strict=True)])
    order = np.argsort(-score, kind="stable")
    score, is_found = score[order], is_found[order]
    is_last = np.append(score[1:] != score[:-1], True)[: len(score)]
    num_found, num_false = (np.cumsum(values)[is_last].astype(np.float64) for values in (is_found, ~is_found))
    none = np.zeros(1)
    num_objects = sum(int(found.num_objects.sum()) for found in matches)
    return _Curve(
        np.concatenate([[np.inf], score[is_last]]),
        np.concatenate([none, num_found]),
        np.concatenate([none, num_false]),
        num_objects,
    )


def _at_precision(curve: _Curve, wanted: float, costs: ErrorCosts, num_images: int) -> OperatingPoint:
    num_used = curve.num_found + curve.num_false
    precision = curve.num_found / np.maximum(num_used, 1)
    good = np.flatnonzero((precision >= wanted) & (num_used > 0))
    return _point(curve, int(good[-1]) if len(good) else 0, costs, num_images)


def _least_cost(curve: _Curve, costs: ErrorCosts, num_images: int) -> OperatingPoint:
    return _point(curve, int(_total_cost(curve, costs).argmin()), costs, num_images)


def _total_cost(curve: _Curve, costs: ErrorCosts) -> Floats:
    return np.asarray(costs.false_alarm * curve.num_false + costs.miss * (curve.num_objects - curve.num_found))


def _point(curve: _Curve, index: int, costs: ErrorCosts, num_images: int) -> OperatingPoint:
    found, false = float(curve.num_found[index]), float(curve.num_false[index])
    return OperatingPoint(
        float(curve.score[index]) if index else None,
        found / (found + false) if index else None,
        found / curve.num_objects if curve.num_objects else 0.0,
        float(_total_cost(curve, costs)[index]) / max(num_images, 1),
    )
