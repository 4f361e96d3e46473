"""Targets whose boxes are trained, and targets that train classification only, as pseudo-labels do by default."""

import torch
from detectron2.structures import Instances
from torch import Tensor


def is_box_trained(targets: Instances) -> Tensor:
    """Return whether the box of each target or sampled proposal is trained, (G,) bool; true without the field."""
    if targets.has("gt_trains_box"):
        trains_box_G: Tensor = targets.gt_trains_box
        return trains_box_G
    return torch.ones(len(targets), dtype=torch.bool, device=targets.gt_classes.device)


def set_box_trained(targets: Instances, value: bool) -> None:
    """Say for all targets of an image whether their boxes are trained."""
    targets.gt_trains_box = torch.full((len(targets),), value, device=targets.gt_classes.device)
