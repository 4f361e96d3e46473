"""Realized loss of the teacher on an image that has been labeled since (docs/method.md#realized-loss).

Shape shorthand: N detections, G labeled boxes, K foreground classes; index K is background.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import pairwise_iou

MATCH_IOU = 0.5
# Probability of the true class that a missed box is counted with; the teacher reported none.
MISS_PROBABILITY = 0.05

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class RealizedLoss(NamedTuple):
    """Focal losses of one image by class: sum and number of terms."""

    total_K: Floats
    num_terms_K: Ints

    def weighted(self, class_weight_K: Floats) -> float:
        """Compute the image's realized loss ``l = sum_c v_c L_c`` (docs/method.md#eq-11)."""
        return float((self.total_K * class_weight_K).sum())


def focal(p_true: Floats, gamma: float) -> Floats:
    """Compute ``FL(p) = -(1 - p)^gamma ln p`` (docs/method.md#eq-8) of each element; p is clipped to [1e-6, 1]."""
    p = np.clip(p_true.astype(np.float64), 1e-6, 1.0)
    return np.asarray(-((1 - p) ** gamma) * np.log(p))


def match_detections(boxes_N4: Floats, scores_N: Floats, gt_boxes_G4: Floats) -> Ints:
    """Match detections to labeled boxes: index of the box of each detection, (N,), -1 for none.

    Greedy by descending score, as in COCO: a detection gets the unmatched box of largest IoU, at IoU >= 0.5.
    """
    matched_N = np.full(len(boxes_N4), -1)
    iou_NG = pairwise_iou(boxes_N4, gt_boxes_G4)
    for n in np.argsort(-scores_N, kind="stable"):
        if iou_NG.shape[1] == 0:
            break
        g = int(iou_NG[n].argmax())
        if iou_NG[n, g] >= MATCH_IOU:
            matched_N[n] = g
            iou_NG[:, g] = -1
    return matched_N


def realized_loss(
    boxes_N4: Floats, scores_N: Floats, class_probs_NK: Floats, gt_boxes_G4: Floats, gt_class_ids_G: Ints, gamma: float
) -> RealizedLoss:
    """Compute the focal loss of the stored posteriors against the labeled boxes, by class.

    A matched detection adds FL of its box's class probability to that class; an unmatched detection adds FL of its
    background probability to its predicted class; a missed box adds FL of ``MISS_PROBABILITY`` to its class.
    """
    num_classes = class_probs_NK.shape[1] - 1
    total_K, num_terms_K = np.zeros(num_classes), np.zeros(num_classes, dtype=np.int64)
    matched_N = match_detections(boxes_N4, scores_N, gt_boxes_G4)
    predicted_N = class_probs_NK[:, :-1].argmax(axis=1) if len(class_probs_NK) else np.zeros(0, dtype=np.int64)
    for n, g in enumerate(matched_N):
        class_id = int(gt_class_ids_G[g]) if g >= 0 else int(predicted_N[n])
        p_true = class_probs_NK[n, class_id] if g >= 0 else class_probs_NK[n, -1]
        total_K[class_id] += focal(np.asarray(p_true), gamma)
        num_terms_K[class_id] += 1
    for g in set(range(len(gt_boxes_G4))) - set(matched_N.tolist()):
        total_K[int(gt_class_ids_G[g])] += focal(np.asarray(MISS_PROBABILITY), gamma)
        num_terms_K[int(gt_class_ids_G[g])] += 1
    return RealizedLoss(total_K, num_terms_K)


def class_difficulty(losses: list[RealizedLoss]) -> Floats:
    """Compute the mean focal loss per class over images, (K,) (docs/method.md#eq-9); NaN for a class without terms."""
    total_K = np.sum([loss.total_K for loss in losses], axis=0)
    num_terms_K = np.sum([loss.num_terms_K for loss in losses], axis=0)
    return np.asarray(np.divide(total_K, num_terms_K, out=np.full(len(total_K), np.nan), where=num_terms_K > 0))
