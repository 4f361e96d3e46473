"""SimOTA: the anchors or regions that learn an object are those whose predictions cost least (docs/method.md#sim-ota).

As in YOLOX (Ge et al. 2021), with the objectness of a proposal network as its only class.

Shape shorthand: A anchors of one image over all levels, R regions of one image, C of either that are candidates, G
targets, K foreground classes.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torch.nn import functional as F

CENTER_RADIUS_STRIDES = 2.5
"""Distance from the target's center, in strides of the anchor's level, up to which an anchor is a candidate."""
IOU_COST_WEIGHT = 3.0
NUM_SUMMED_IOUS = 10
_OUTSIDE_COST = 1e5
_MIN_IOU = 1e-8


@torch.no_grad()
def assign(centers_A2: Tensor, strides_A: Tensor, logits_A: Tensor, predicted_A4: Tensor, targets_G4: Tensor) -> Tensor:
    """Give every target some anchors, and every anchor one target at most.

    Args:
        centers_A2: x and y of the anchors' centers, in pixels.
        strides_A: of the level of each anchor, in pixels.
        logits_A: predicted objectness.
        predicted_A4: predicted boxes, corners in pixels.
        targets_G4: corners in pixels.

    Returns:
        Index of each anchor's target, (A,) int64; -1 for background.
    """
    inside_GA = _is_inside(centers_A2, targets_G4)
    distance_GA2 = (centers_A2 - (targets_G4[:, None, :2] + targets_G4[:, None, 2:]) / 2).abs()
    central_GA = (distance_GA2 < CENTER_RADIUS_STRIDES * strides_A[:, None]).all(dim=2)
    candidates = (inside_GA | central_GA).any(dim=0).nonzero().squeeze(1)
    iou_GC = pairwise_iou(Boxes(targets_G4), Boxes(predicted_A4[candidates]))
    cost_GC = F.softplus(-logits_A[candidates]) - IOU_COST_WEIGHT * (iou_GC + _MIN_IOU).log()
    cost_GC += _OUTSIDE_COST * ~(inside_GA & central_GA)[:, candidates]
    return _match(len(centers_A2), candidates, cost_GC, iou_GC)


@torch.no_grad()
def assign_regions(
    centers_R2: Tensor, log_probs_RK: Tensor, iou_GR: Tensor, targets_G4: Tensor, class_ids_G: Tensor
) -> Tensor:
    """Give every target some regions of the second stage, and every region one target at most.

    Args:
        centers_R2: x and y of the regions' centers, in pixels.
        log_probs_RK: logarithms of the predicted posteriors, (R, K+1) with background last.
        iou_GR: of each target with the box that is predicted for the region and the target's class.
        targets_G4: corners in pixels.
        class_ids_G: in [0, K).

    Returns:
        Index of each region's target, (R,) int64; -1 for none.
    """
    inside_GR = _is_inside(centers_R2, targets_G4)
    candidates = inside_GR.any(dim=0).nonzero().squeeze(1)
    iou_GC = iou_GR[:, candidates]
    cost_GC = -log_probs_RK[candidates][:, class_ids_G].T - IOU_COST_WEIGHT * (iou_GC + _MIN_IOU).log()
    cost_GC += _OUTSIDE_COST * ~inside_GR[:, candidates]
    return _match(len(centers_R2), candidates, cost_GC, iou_GC)


def _match(total: int, candidates: Tensor, cost_GC: Tensor, iou_GC: Tensor) -> Tensor:
    """Let every target choose its cheapest candidates; index of the target for each of all anchors, -1 for none."""
    matched_A = torch.full((total,), -1, dtype=torch.int64, device=candidates.device)
    if not len(candidates):
        return matched_A
    chosen_GC = _cheapest(cost_GC, _num_chosen(iou_GC))
    is_chosen_C = chosen_GC.any(dim=0)
    # What several targets chose goes to the one it costs least with.
    target_C = torch.where(chosen_GC.sum(dim=0) > 1, cost_GC.argmin(dim=0), chosen_GC.int().argmax(dim=0))
    matched_A[candidates[is_chosen_C]] = target_C[is_chosen_C]
    return matched_A


def _is_inside(centers_A2: Tensor, targets_G4: Tensor) -> Tensor:
    """Return whether a center lies inside a target, (G, A)."""
    return ((centers_A2 > targets_G4[:, None, :2]) & (centers_A2 < targets_G4[:, None, 2:])).all(dim=2)


def _num_chosen(iou_GC: Tensor) -> Tensor:
    """Return k of every target, (G,): its largest IoUs added up and rounded down, at least 1."""
    num_candidates = iou_GC.shape[1]
    largest_GT = iou_GC.topk(min(NUM_SUMMED_IOUS, num_candidates), dim=1).values
    return largest_GT.sum(dim=1).int().clamp(1, num_candidates)


def _cheapest(cost_GC: Tensor, k_G: Tensor) -> Tensor:
    """Return whether a candidate is among the k cheapest of a target, (G, C) bool; of equal ones the first count."""
    order_GC = cost_GC.argsort(dim=1, stable=True)
    rank_C = torch.arange(cost_GC.shape[1], device=cost_GC.device)
    chosen_GC = torch.zeros_like(cost_GC, dtype=torch.bool)
    return chosen_GC.scatter_(1, order_GC, rank_C[None, :] < k_G[:, None])
