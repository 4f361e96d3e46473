"""Classification losses of regions whose label may be wrong (docs/method.md#noise-aware).

Shape shorthand: R ROIs over the batch, K foreground classes; index K is background.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.losses import focal_loss


def generalized_cross_entropy(logits_RK: Tensor, class_ids_R: Tensor, q: float, weight_R: Tensor) -> Tensor:
    """Compute ``w (1 - p_t^q) / q`` of every ROI, (R,) >= 0.

    Args:
        logits_RK: (R, K+1), background last.
        class_ids_R: (R,) in [0, K].
        q: in (0, 1]; towards 0 it is cross entropy, 1 the absolute error.
        weight_R: (R,) positive; the factor w of each ROI.
    """
    log_p_R = F.log_softmax(logits_RK.float(), dim=1).gather(1, class_ids_R[:, None]).squeeze(1)
    return -weight_R * torch.expm1(q * log_p_R) / q


def bootstrap_loss(
    logits_RK: Tensor, class_ids_R: Tensor, reliability_R: Tensor, gamma: float, weight_R: Tensor
) -> Tensor:
    """Compute ``r FL(p_t) + (1 - r) H(p)`` of every ROI, weighted, (R,) >= 0.

    Args:
        logits_RK: (R, K+1), background last.
        class_ids_R: (R,) in [0, K].
        reliability_R: (R,) r in [0, 1]: how sure it is that the ROI has this class.
        gamma: >= 0, exponent of the focal loss FL.
        weight_R: (R,) positive.
    """
    log_p_RK = F.log_softmax(logits_RK.float(), dim=1)
    entropy_R = -(log_p_RK.exp() * log_p_RK).sum(dim=1)
    focal_R = focal_loss(logits_RK, class_ids_R, gamma, weight_R)
    return reliability_R * focal_R + (1 - reliability_R) * weight_R * entropy_R


@dataclass(frozen=True)
class NoiseAwareLoss:
    """Which loss takes the place of the focal loss, and in which images."""

    kind: Literal["generalized", "bootstrap"]
    q: float
    """Of ``generalized``, in (0, 1]."""
    on_labels: bool
    """Whether it replaces the focal loss in labeled images too, and not only in pseudo-labeled ones."""

    def replace(
        self, focal_R: Tensor, logits_RK: Tensor, sampled: list[Instances], gamma: float, weight_R: Tensor
    ) -> Tensor:
        """Return the loss of every ROI, (R,): this one where the label may be wrong, the focal one elsewhere.

        Args:
            focal_R: (R,) the focal losses.
            logits_RK: (R, K+1).
            sampled: proposals of each image with ``gt_classes``, ``gt_is_pseudo`` and, where there is a pseudo-label,
                ``gt_score``.
            gamma: of the focal loss.
            weight_R: (R,).
        """
        class_ids_R = torch.cat([image.gt_classes for image in sampled])
        if self.kind == "generalized":
            noisy_R = generalized_cross_entropy(logits_RK, class_ids_R, self.q, weight_R)
        else:
            is_background_R = class_ids_R == logits_RK.shape[1] - 1
            reliability_R = torch.cat([reliability(image) for image in sampled]).where(~is_background_R, 1.0)
            noisy_R = bootstrap_loss(logits_RK, class_ids_R, reliability_R, gamma, weight_R)
        is_noisy_R = torch.cat([image.gt_is_pseudo for image in sampled]) | self.on_labels
        return torch.where(is_noisy_R, noisy_R, focal_R)


def reliability(targets: Instances) -> Tensor:
    """Return the teacher's score of each target or sampled proposal, (G,); 1 where people gave the label."""
    if targets.has("gt_score"):
        score_G: Tensor = targets.gt_score
        return score_G
    return torch.ones(len(targets), device=targets.gt_classes.device)


def mark_pseudo_labeled(instances: Instances, value: bool) -> None:
    """Say of all targets or proposals of an image whether its labels are the teacher's."""
    device = instances.get_fields()["gt_classes" if instances.has("gt_classes") else "objectness_logits"].device
    instances.gt_is_pseudo = torch.full((len(instances),), value, device=device)
