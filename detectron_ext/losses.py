"""Losses per ROI and per image, and what they leave out; nothing here averages over the batch.

Shape shorthand: N images of the batch, R ROIs over the batch, K foreground classes, G targets of an image.
Classes are in [0, K]; K is background.

Left out are places that are neither object nor background: where the teacher is unsure, and crowd regions of the
labels. Without the former, an object that the teacher does not dare to name counts as background in every unlabeled
image, and rare classes are unlearned: their detections grow less sure, and still fewer become pseudo-labels. Soft
Teacher (Xu et al. 2021) weights background by the teacher's reliability for the same reason. A crowd region (COCO
``iscrowd``) holds several objects that nobody has boxed one by one. What lies inside it is left out of training, as in
Detectron (``TRAIN.CROWD_FILTER_THRESH``); docs/method.md#crowd-regions. Some targets train classification only, as
pseudo-labels do by default.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch import Tensor
from torch.nn import functional as F

_MIN_P_WRONG = 1e-6
"""``1 - p_t`` is kept above this: for a gamma in (0, 1) the gradient of ``(1 - p_t)^gamma`` is infinite at 0."""

MIN_CLAIM_PROBABILITY = 0.05
"""A background ROI claims a class from this posterior on: the lowest score that Detectron2 reports by default."""


class DetectionLosses(NamedTuple):
    """The four Faster R-CNN losses, and that of relations, each (N,) with one value per image."""

    objectness_N: Tensor
    rpn_boxes_N: Tensor
    classes_N: Tensor
    roi_boxes_N: Tensor
    relations_N: Tensor | None = None
    """Of docs/method.md#relations, before its weight; None where no image has regions to compare."""

    def classification(self) -> Tensor:
        """Add RPN objectness and ROI classification, (N,)."""
        return self.objectness_N + self.classes_N

    def total(self, relation_weight: float = 0.0) -> Tensor:
        """Add all four losses, and that of relations with its weight, (N,)."""
        total_N = self.classification() + self.rpn_boxes_N + self.roi_boxes_N
        return total_N if self.relations_N is None else total_N + relation_weight * self.relations_N


def focal_loss(logits_RK: Tensor, class_ids_R: Tensor, gamma: float, weight_R: Tensor) -> Tensor:
    """Compute the focal loss of every ROI, ``-w (1 - p_t)^gamma ln p_t`` (docs/method.md#eq-8).

    Args:
        logits_RK: (R, K+1), background last.
        class_ids_R: (R,) in [0, K].
        gamma: >= 0; 0 gives weighted cross entropy. No alpha, as in Unbiased Teacher.
        weight_R: (R,) positive; the factor w of each ROI.

    Returns:
        (R,), >= 0, with a finite gradient for every gamma. Empty for R = 0, with a gradient path.
    """
    log_p_R = F.log_softmax(logits_RK.float(), dim=1).gather(1, class_ids_R[:, None]).squeeze(1)
    modulation_R = (-torch.expm1(log_p_R)).clamp(min=_MIN_P_WRONG) ** gamma if gamma > 0 else 1.0
    return -weight_R * modulation_R * log_p_R


@torch.no_grad()
def roi_class_weights(
    logits_RK: Tensor, class_ids_R: Tensor, positive_weight_K: Tensor, claimed_background_weight_K: Tensor
) -> Tensor:
    """Compute the factor of every ROI's classification loss (docs/method.md#roi-weight).

    A ROI of class c gets v_c. A background ROI gets b_k of the foreground class k with the largest posterior, if
    that posterior is at least ``MIN_CLAIM_PROBABILITY``, else 1.

    Args:
        logits_RK: (R, K+1), background last.
        class_ids_R: (R,) in [0, K].
        positive_weight_K: (K,) v, positive.
        claimed_background_weight_K: (K,) b, positive.

    Returns:
        (R,) positive, without a gradient.
    """
    num_classes = len(positive_weight_K)
    claimed_p_R, claimed_class_R = F.softmax(logits_RK.float(), dim=1)[:, :num_classes].max(dim=1)
    background_weight_R = torch.where(
        claimed_p_R >= MIN_CLAIM_PROBABILITY, claimed_background_weight_K[claimed_class_R], 1.0
    )
    positive_weight_R = positive_weight_K[class_ids_R.clamp(max=num_classes - 1)]
    return torch.where(class_ids_R < num_classes, positive_weight_R, background_weight_R)


def per_image_mean(loss_R: Tensor, image_index_R: Tensor, num_images: int) -> Tensor:
    """Average the ROI losses of each image, (N,); 0 for an image without ROIs."""
    totals_N = loss_R.new_zeros(num_images).index_add(0, image_index_R, loss_R)
    counts_N = torch.bincount(image_index_R, minlength=num_images).clamp(min=1)
    return totals_N / counts_N


def image_weight(uncertainty_N: Tensor, mode: str) -> Tensor:
    """Compute the weight of each unlabeled image, ``W_j = sigmoid(z_j)`` (docs/method.md#eq-17).

    Args:
        uncertainty_N: (N,) z_j: U_j, or standardized U_j.
        mode: ``favor_uncertain`` gives sigmoid(z), ``favor_certain`` sigmoid(-z), ``uniform`` 1.

    Returns:
        (N,) in (0, 1), or ones.
    """
    if mode == "uniform":
        return torch.ones_like(uncertainty_N)
    return torch.sigmoid(uncertainty_N if mode == "favor_uncertain" else -uncertainty_N)


IGNORE_LABEL = -1
"""``gt_classes`` of a box that the teacher is unsure of."""
CROWD_LABEL = -2
"""``gt_classes`` of a crowd region."""
CROWD_MIN_IOA = 0.7
"""Share of a box's area that lies in a crowd region, from which the box is ignored: Detectron's value."""


def is_foreground(targets: Instances) -> Tensor:
    """(G,) whether a target is an object."""
    return targets.gt_classes >= 0


def foreground(targets: Sequence[Instances]) -> list[Instances]:
    """The targets of each image without unsure ones and crowd regions."""
    return [image[is_foreground(image)] for image in targets]


def overlaps_ignored(boxes: Boxes, targets: Instances, min_iou: float) -> Tensor:
    """(R,) whether a box is near an unsure target or inside a crowd region, and near no object.

    Near is an IoU of ``min_iou`` at least; inside, ``CROWD_MIN_IOA`` of the box's own area at least.
    """
    foreground_G = is_foreground(targets)
    if foreground_G.all():
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    is_near_GR = pairwise_iou(targets.gt_boxes, boxes) >= min_iou
    is_in_crowd_R = (pairwise_ioa(targets.gt_boxes[targets.gt_classes == CROWD_LABEL], boxes) >= CROWD_MIN_IOA).any(0)
    is_unsure_R = is_near_GR[targets.gt_classes == IGNORE_LABEL].any(dim=0)
    return (is_unsure_R | is_in_crowd_R) & ~is_near_GR[foreground_G].any(dim=0)


def is_box_trained(targets: Instances) -> Tensor:
    """Return whether the box of each target or sampled proposal is trained, (G,) bool; true without the field."""
    if targets.has("gt_trains_box"):
        trains_box_G: Tensor = targets.gt_trains_box
        return trains_box_G
    return torch.ones(len(targets), dtype=torch.bool, device=targets.gt_classes.device)


def set_box_trained(targets: Instances, value: bool) -> None:
    """Say for all targets of an image whether their boxes are trained."""
    targets.gt_trains_box = torch.full((len(targets),), value, device=targets.gt_classes.device)


def set_weight(targets: Instances, weight_G: Tensor) -> None:
    """Say how much the regions of each target of an image count, (G,) in [0, 1]."""
    targets.gt_weight = weight_G.to(targets.gt_classes.device, torch.float32)


def pseudo_label_weight(proposals: Sequence[Instances], class_ids_R: Tensor, num_classes: int) -> Tensor | float:
    """Return the weight of the target of every sampled proposal, (R,): 1 for background, and for targets without one.

    1.0 where no target has a weight, so that nothing is computed.
    """
    if not any(image.has("gt_weight") for image in proposals):
        return 1.0
    weight_R = torch.cat(
        [
            image.gt_weight if image.has("gt_weight") else torch.ones(len(image), device=class_ids_R.device)
            for image in proposals
        ]
    )
    return torch.where(class_ids_R < num_classes, weight_R, 1.0)
