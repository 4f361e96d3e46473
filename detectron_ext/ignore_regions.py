"""Places where the teacher is unsure: neither object nor background for the student.

Without them an object that the teacher does not dare to name counts as background in every unlabeled image, and rare
classes are unlearned: their detections grow less sure, and still fewer become pseudo-labels. Soft Teacher (Xu et al.
2021) weights background by the teacher's reliability for the same reason.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

IGNORE_LABEL = -1
"""``gt_classes`` of such a box."""


def is_foreground(targets: Instances) -> Tensor:
    """(G,) whether a target is an object."""
    return targets.gt_classes != IGNORE_LABEL


def foreground(targets: Sequence[Instances]) -> list[Instances]:
    """The targets of each image without unsure ones."""
    return [image[is_foreground(image)] for image in targets]


def overlaps_ignored(boxes: Boxes, targets: Instances, min_iou: float) -> Tensor:
    """(R,) whether a box overlaps an unsure target by ``min_iou`` at least, and no object by as much."""
    foreground_G = is_foreground(targets)
    if foreground_G.all():
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    overlaps_GR = pairwise_iou(targets.gt_boxes, boxes) >= min_iou
    return overlaps_GR[~foreground_G].any(dim=0) & ~overlaps_GR[foreground_G].any(dim=0)
