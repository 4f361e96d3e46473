"""Losses per ROI and per image; nothing here averages over the batch.

Shape shorthand: N images of the batch, R ROIs over the batch, K foreground classes.
Classes are in [0, K]; K is background.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_MIN_P_WRONG = 1e-6
"""``1 - p_t`` is kept above this: for a gamma in (0, 1) the gradient of ``(1 - p_t)^gamma`` is infinite at 0."""

MIN_CLAIM_PROBABILITY = 0.05
"""A background ROI claims a class from this posterior on: the lowest score that Detectron2 reports by default."""


class DetectionLosses(NamedTuple):
    """The four Faster R-CNN losses, each (N,) with one value per image."""

    objectness_N: Tensor
    rpn_boxes_N: Tensor
    classes_N: Tensor
    roi_boxes_N: Tensor

    def classification(self) -> Tensor:
        """Add RPN objectness and ROI classification, (N,)."""
        return self.objectness_N + self.classes_N

    def total(self) -> Tensor:
        """Add all four losses, (N,)."""
        return self.classification() + self.rpn_boxes_N + self.roi_boxes_N


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
