"""Consistency of how regions of one image relate to each other, in both views (docs/method.md#relations).

Shape shorthand: R regions of one image, F features of the box head.
"""

from typing import NamedTuple

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

MAX_REGIONS = 20
"""Detections of an image that are compared, the best scores first."""
TEMPERATURE = 0.1


class TeacherRegions(NamedTuple):
    """Regions of one image as the teacher sees them in the weak view."""

    boxes: Boxes  # (R, 4) px of both views
    features_RF: Tensor


def relation_loss(student_RF: Tensor, teacher_RF: Tensor) -> Tensor:
    """Compare the similarities of each region with the others, scalar >= 0.

    The mean over regions of the Kullback-Leibler divergence of the student's softmax over cosine similarities from the
    teacher's. 0, with a gradient path, for fewer than three regions: with a single other one there is nothing to weigh.
    """
    num_regions = len(student_RF)
    if num_regions < 3:
        return student_RF.float().sum() * 0
    log_student_RR, log_teacher_RR = (
        F.log_softmax(_similarities(features_RF.float()) / TEMPERATURE, dim=1)
        for features_RF in (student_RF, teacher_RF.detach())
    )
    return F.kl_div(log_student_RR, log_teacher_RR, reduction="sum", log_target=True) / num_regions


def _similarities(features_RF: Tensor) -> Tensor:
    """Return the cosines of each region with the others, (R, R - 1)."""
    unit_RF = F.normalize(features_RF, dim=1)
    num_regions = len(unit_RF)
    is_other_RR = ~torch.eye(num_regions, dtype=torch.bool, device=unit_RF.device)
    return (unit_RF @ unit_RF.T)[is_other_RR].reshape(num_regions, num_regions - 1)
