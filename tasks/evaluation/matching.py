"""Match two sets of boxes on one image: which box of one set is which of the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detectron_ext.uncertainty_metrics import Floats, pairwise_iou
from tasks.data.schemas import Box

MATCH_IOU = 0.5
"""Boxes that overlap at least this much may be the same object."""


@dataclass(frozen=True)
class BoxPair:
    """A box of the first set and the box of the second set for the same object."""

    first: int
    second: int
    iou: float
    same_class: bool


def match_boxes(first: Sequence[Box], second: Sequence[Box]) -> list[BoxPair]:
    """Pair the boxes of the same object, each box in at most one pair.

    Boxes of one class are paired first, so that the sum of their IoU is largest; then what is left, whatever
    its class: the same object under another name.
    """
    iou_AB = pairwise_iou(_corners(first), _corners(second))
    same_AB = np.array([[a.category == b.category for b in second] for a in first], dtype=bool).reshape(iou_AB.shape)
    matching_iou_AB = np.where(iou_AB >= MATCH_IOU, iou_AB, 0.0)
    pairs = _assign(np.where(same_AB, matching_iou_AB, 0.0), same_class=True)
    for pair in pairs:
        matching_iou_AB[pair.first, :] = matching_iou_AB[:, pair.second] = 0.0
    return sorted(
        pairs + _assign(np.where(same_AB, 0.0, matching_iou_AB), same_class=False), key=lambda pair: pair.first
    )


def _assign(score_AB: Floats, *, same_class: bool) -> list[BoxPair]:
    from scipy.optimize import linear_sum_assignment  # half a second to import, so only where it is used

    rows, columns = linear_sum_assignment(score_AB, maximize=True)
    return [
        BoxPair(int(a), int(b), float(score_AB[a, b]), same_class)
        for a, b in zip(rows, columns, strict=True)
        if score_AB[a, b] > 0
    ]


def _corners(boxes: Sequence[Box]) -> Floats:
    return np.array([box.xyxy_px for box in boxes], dtype=np.float64).reshape(-1, 4)
