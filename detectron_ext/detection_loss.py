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
    """Focal losses of one image by class, those of objects and those of background that was claimed apart."""

    positive_K: Floats  # sum over the labeled boxes of the class
    num_boxes_K: Ints  # labeled boxes of the class
    claimed_background_K: Floats  # sum over the detections of nothing that claim the class
    num_claims_K: Ints  # detections that claim the class, right ones too

    def weighted(self, positive_weight_K: Floats, claimed_background_weight_K: Floats) -> float:
        """Compute the image's realized loss ``l = sum_c v_c L_c + b_c G_c`` (docs/method.md#eq-11)."""
        return float(self.positive_K @ positive_weight_K + self.claimed_background_K @ claimed_background_weight_K)


def focal(p_true: Floats, gamma: float) -> Floats:
    """Compute ``FL(p) = -(1 - p)^gamma ln p`` (docs/method.md#eq-8) of each element; p is clipped to [1e-6, 1]."""
    p = np.clip(p_true.astype(np.float64), 1e-6, 1.0)
    return np.asarray(-((1 - p) ** gamma) * np.log(p))


def match_detections(boxes_N4: Floats, scores_N: Floats, gt_boxes_G4: Floats, *, min_iou: float = MATCH_IOU) -> Ints:
    """Match detections to labeled boxes: index of the box of each detection, (N,), -1 for none.

    Greedy by descending score, as in COCO: a detection gets the unmatched box of largest IoU, at IoU >= ``min_iou``.
    """
    matched_N = np.full(len(boxes_N4), -1)
    iou_NG = pairwise_iou(boxes_N4, gt_boxes_G4)
    for n in np.argsort(-scores_N, kind="stable"):
        if iou_NG.shape[1] == 0:
            break
        g = int(iou_NG[n].argmax())
        if iou_NG[n, g] >= min_iou:
            matched_N[n] = g
            iou_NG[:, g] = -1
    return matched_N


def counts_as_detection(
    boxes_N4: Floats, class_ids_N: Ints, gt_boxes_G4: Floats, crowd_boxes_C4: Floats, crowd_class_ids_C: Ints
) -> NDArray[np.bool_]:
    """Tell which detections count, (N,): all but those inside a crowd region of their class that fit no labeled box.

    As in COCO, inside means that half of the detection's own area lies in the region (docs/method.md#crowd-regions).
    """
    if not len(crowd_boxes_C4) or not len(boxes_N4):
        return np.ones(len(boxes_N4), dtype=np.bool_)
    corners_N14, corners_1C4 = np.asarray(boxes_N4, dtype=np.float64)[:, None], np.asarray(crowd_boxes_C4)[None]
    sides_NC2 = np.minimum(corners_N14[..., 2:], corners_1C4[..., 2:]) - np.maximum(
        corners_N14[..., :2], corners_1C4[..., :2]
    )
    area_N1 = np.prod(corners_N14[..., 2:] - corners_N14[..., :2], axis=-1)
    is_inside_NC = np.prod(np.maximum(sides_NC2, 0.0), axis=-1) >= MATCH_IOU * area_N1
    is_ignored_N = (is_inside_NC & (class_ids_N[:, None] == crowd_class_ids_C[None])).any(axis=1)
    fits_N = (pairwise_iou(boxes_N4, gt_boxes_G4) >= MATCH_IOU).any(axis=1)
    return np.asarray(~is_ignored_N | fits_N)


def realized_loss(
    boxes_N4: Floats, scores_N: Floats, class_probs_NK: Floats, gt_boxes_G4: Floats, gt_class_ids_G: Ints, gamma: float
) -> RealizedLoss:
    """Compute the focal loss of the stored posteriors against the labeled boxes, by class.

    A matched detection adds FL of its box's class probability to the positives of that class, a missed box FL of
    ``MISS_PROBABILITY``; an unmatched detection adds FL of its background probability to the claimed background of
    its predicted class.
    """
    num_classes = class_probs_NK.shape[1] - 1
    matched_N = match_detections(boxes_N4, scores_N, gt_boxes_G4)
    claimed_N = class_probs_NK[:, :-1].argmax(axis=1)
    is_hit_N = matched_N >= 0
    p_true_G = np.full(len(gt_boxes_G4), MISS_PROBABILITY)
    hit_G = matched_N[is_hit_N]
    p_true_G[hit_G] = class_probs_NK[is_hit_N, gt_class_ids_G[hit_G]]
    p_background_N = class_probs_NK[~is_hit_N, -1]
    return RealizedLoss(
        _sum_by_class(gt_class_ids_G, focal(p_true_G, gamma), num_classes),
        np.bincount(gt_class_ids_G, minlength=num_classes),
        _sum_by_class(claimed_N[~is_hit_N], focal(p_background_N, gamma), num_classes),
        np.bincount(claimed_N, minlength=num_classes),
    )


def _sum_by_class(class_ids: Ints, values: Floats, num_classes: int) -> Floats:
    sums_K = np.bincount(class_ids, weights=values, minlength=num_classes)
    return sums_K.astype(np.float64)  # integers where there is no value at all
