"""Losses per ROI and per image; nothing here averages over the batch.

Shape shorthand: N images of the batch, R ROIs over the batch, K foreground classes.
Classes are in [0, K]; K is background.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DetectionLosses(NamedTuple):
    """The four Faster R-CNN losses, each (N,) with one value per image."""

    objectness_N: Tensor
    rpn_boxes_N: Tensor
    classes_N: Tensor
    roi_boxes_N: Tensor

    def classification(self) -> Tensor:
        """(N,) RPN objectness plus ROI classification."""
        return self.objectness_N + self.classes_N

    def total(self) -> Tensor:
        """(N,) all four."""
        return self.classification() + self.rpn_boxes_N + self.roi_boxes_N


def focal_loss(logits_RK: Tensor, class_ids_R: Tensor, gamma: float, class_weight_K: Tensor) -> Tensor:
    """Focal loss of every ROI: ``-v_c (1 - p_t)^gamma ln p_t`` (paper Eq. 4, weighted by Eq. 14).

    Args:
        logits_RK: (R, K+1), background last.
        class_ids_R: (R,) in [0, K].
        gamma: >= 0; 0 gives weighted cross entropy. No alpha, as in Unbiased Teacher.
        class_weight_K: (K+1,) positive; the weight of the ROI's true class.

    Returns:
        (R,), >= 0. Empty for R = 0, with a gradient path.
    """
    log_p_R = F.log_softmax(logits_RK.float(), dim=1).gather(1, class_ids_R[:, None]).squeeze(1)
    modulation_R = (1 - log_p_R.exp()).clamp(min=0) ** gamma if gamma > 0 else 1.0
    return -class_weight_K[class_ids_R] * modulation_R * log_p_R


def per_image_mean(loss_R: Tensor, image_index_R: Tensor, num_images: int) -> Tensor:
    """Mean of the ROI losses of each image, (N,); 0 for an image without ROIs."""
    totals_N = loss_R.new_zeros(num_images).index_add(0, image_index_R, loss_R)
    counts_N = torch.bincount(image_index_R, minlength=num_images).clamp(min=1)
    return totals_N / counts_N


def image_weight(uncertainty_N: Tensor, mode: str) -> Tensor:
    """Weight of each unlabeled image, ``W_j = sigmoid(z_j)`` (METHOD section 6, Eqs. 16-17).

    Args:
        uncertainty_N: (N,) z_j: U_j, or standardised U_j.
        mode: ``favor_uncertain`` gives sigmoid(z), ``favor_certain`` sigmoid(-z), ``uniform`` 1.

    Returns:
        (N,) in (0, 1), or ones.
    """
    if mode == "uniform":
        return torch.ones_like(uncertainty_N)
    return torch.sigmoid(uncertainty_N if mode == "favor_uncertain" else -uncertainty_N)
