"""Which targets are objects, and which of them train the boxes.

Neither object nor background are places where the teacher is unsure, and crowd regions of the labels. Without the
former, an object that the teacher does not dare to name counts as background in every unlabeled image, and rare classes
are unlearned: their detections grow less sure, and still fewer become pseudo-labels. Soft Teacher (Xu et al. 2021)
weights background by the teacher's reliability for the same reason. A crowd region (COCO ``iscrowd``) holds several
objects that nobody has boxed one by one. What lies inside it is left out of training, as in Detectron
(``TRAIN.CROWD_FILTER_THRESH``); docs/method.md#crowd-regions.

Some targets train classification only, as pseudo-labels do by default.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch import Tensor

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
