"""Measure how far two detectors disagree on one image: about places and about classes (docs/method.md#committee).

Shape letters: N and M detections of the two members, K foreground classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from detectron_ext.inference import Detections
from detectron_ext.uncertainty_metrics import Floats, pairwise_iou

MIN_PAIR_IOU = 0.1
"""Boxes that overlap less are not of one object; as for a badly placed box in docs/method.md#box-errors."""
_MIN_PROBABILITY = 1e-6
_TIE_BREAK = 1e-3


class Disagreement(NamedTuple):
    """Disagreement of two members on an image, each a sum over objects; 0 where the members are identical."""

    boxes: float
    """Sum of score times 1 - IoU over pairs, and of the scores of unmatched boxes."""
    classes: float
    """Sum of score times the class disagreement of pairs, and of the scores of unmatched boxes."""


def disagreement(first: Detections, second: Detections) -> Disagreement:
    """Compare two members' detections under the assignment with the largest sum of IoU; classes only break ties.

    A pair weighs as much as its larger score. What one member sees and the other does not is full disagreement, about
    the place and about the class.
    """
    if not len(first.scores) or not len(second.scores):
        alone = float(first.scores.sum(dtype=np.float64) + second.scores.sum(dtype=np.float64))
        return Disagreement(alone, alone)
    iou_NM = pairwise_iou(first.boxes_xyxy, second.boxes_xyxy)
    agreement_NM = 1 - class_disagreement(first.class_probs[:, None], second.class_probs[None])
    gain_NM = np.where(iou_NM >= MIN_PAIR_IOU, iou_NM + _TIE_BREAK * agreement_NM, 0.0)
    rows, columns = linear_sum_assignment(gain_NM, maximize=True)
    is_pair = iou_NM[rows, columns] >= MIN_PAIR_IOU
    rows, columns = rows[is_pair], columns[is_pair]
    weight = np.maximum(first.scores[rows], second.scores[columns]).astype(np.float64)
    unmatched = float(np.delete(first.scores, rows).sum(dtype=np.float64))
    unmatched += float(np.delete(second.scores, columns).sum(dtype=np.float64))
    boxes = float((weight * (1 - iou_NM[rows, columns])).sum())
    classes = float((weight * class_disagreement(first.class_probs[rows], second.class_probs[columns])).sum())
    return Disagreement(boxes + unmatched, classes + unmatched)


def class_disagreement(first_K: Floats, second_K: Floats) -> NDArray[np.float64]:
    """Compute ``1 - exp(-J)`` of posteriors along the last axis, in [0, 1); J is the symmetric KL divergence in nats.

    ``J = sum_k (p_k - q_k) (ln p_k - ln q_k)``; probabilities are clipped to at least 1e-6.
    """
    p_K = np.maximum(first_K.astype(np.float64), _MIN_PROBABILITY)
    q_K = np.maximum(second_K.astype(np.float64), _MIN_PROBABILITY)
    return np.asarray(-np.expm1(-((p_K - q_K) * (np.log(p_K) - np.log(q_K))).sum(axis=-1)))
