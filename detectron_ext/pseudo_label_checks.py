"""Two checks of a pseudo-label that a person can look at (docs/method.md#pseudo-label-checks).

Activation: is the first principal component of the feature map strong inside the box? Similarity: does the region look
like labeled regions of its class? Both are in [0, 1]; their product is the check's value.

Shape shorthand: R regions over some images, K foreground classes, and background as class K; F features of the box
head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.distributed import all_reduce_mean
from detectron_ext.meta_arch import PerImageRCNN

TEMPERATURE = 0.1
"""Of the softmax over cosine similarities."""
UPDATE_EVERY = 4
"""Iterations between two looks of the teacher at labeled regions."""
_LEAD_UPDATES = 16
"""Looks before the end of burn-in, so that prototypes exist when the first pseudo-label is judged."""
_MOMENTUM = 0.9
_NUM_PLACES = 20
_MAX_SHARED_FRAC = 0.2
"""A background region and any labeled object share at most this much of the area of either."""


class RegionPrototypes:
    """Mean direction of the features of labeled regions, by class, as a moving average.

    The state stays on the CPU, so that a checkpoint loads the same on every machine.
    """

    def __init__(self, num_classes: int, num_features: int) -> None:
        """Begin without any prototype."""
        self.num_classes = num_classes
        self._sum_KF = torch.zeros(num_classes + 1, num_features, dtype=torch.float64)

    def update(self, features_RF: Tensor, class_ids_R: Tensor) -> None:
        """Add regions of all processes; class ids are in [0, K]."""
        step_KF = torch.zeros_like(self._sum_KF)
        step_KF.index_add_(0, class_ids_R.cpu(), F.normalize(features_RF.double(), dim=1).cpu())
        step_KF = all_reduce_mean(step_KF)
        seen_K = step_KF.any(dim=1)
        self._sum_KF[seen_K] = _MOMENTUM * self._sum_KF[seen_K] + (1 - _MOMENTUM) * F.normalize(step_KF[seen_K], dim=1)

    def similarity(self, features_RF: Tensor, class_ids_R: Tensor) -> Tensor:
        """Return the softmax of the cosines with all prototypes at the region's own class, (R,) in [0, 1], on the CPU.

        1 for a class without a prototype: nothing speaks against the region.
        """
        is_known_K = self._sum_KF.any(dim=1)
        cosine_RK = F.normalize(features_RF.double().cpu(), dim=1) @ F.normalize(self._sum_KF, dim=1).T
        cosine_RK = cosine_RK.masked_fill(~is_known_K, -torch.inf)
        class_ids_R = class_ids_R.cpu()
        known_R = is_known_K[class_ids_R]
        share_R = torch.softmax(cosine_RK / TEMPERATURE, dim=1).gather(1, class_ids_R[:, None]).squeeze(1)
        return torch.where(known_R, share_R, 1.0).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving average."""
        return {"sum_KF": self._sum_KF.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the moving average."""
        self._sum_KF = state["sum_KF"].cpu().clone()


def background_boxes(boxes_G4: Tensor, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Move each box to a random place where no object is, (B, 4) with B <= G; a box without such a place is left out.

    Args:
        boxes_G4: of the labeled objects.
        image_size: height and width in pixels.
        generator: on the CPU.
    """
    height, width = image_size
    sizes_G2 = boxes_G4[:, 2:] - boxes_G4[:, :2]
    free_G2 = (torch.tensor([width, height], dtype=torch.float32, device=boxes_G4.device) - sizes_G2).clamp(min=0)
    chance_GP2 = torch.rand((len(boxes_G4), _NUM_PLACES, 2), generator=generator).to(boxes_G4.device)
    corner_GP2 = chance_GP2 * free_G2[:, None]
    places = torch.cat([corner_GP2, corner_GP2 + sizes_G2[:, None]], dim=2).reshape(-1, 4)
    objects, moved = Boxes(boxes_G4), Boxes(places)
    is_free = (pairwise_ioa(objects, moved) <= _MAX_SHARED_FRAC).all(dim=0)
    is_free &= (pairwise_ioa(moved, objects) <= _MAX_SHARED_FRAC).all(dim=1)
    is_free_GP = is_free.reshape(len(boxes_G4), _NUM_PLACES)
    first_G = is_free_GP.int().argmax(dim=1)
    chosen_G4 = places.reshape(len(boxes_G4), _NUM_PLACES, 4)[torch.arange(len(boxes_G4)), first_G]
    return chosen_G4[is_free_GP.any(dim=1)]


class CheckedDetections:
    """Both values of the detections of some images, all on the CPU."""

    def __init__(self, activation_R: Tensor, similarity_R: Tensor) -> None:
        """Keep both, (R,) each."""
        self.activation_R, self.similarity_R = activation_R, similarity_R

    @property
    def value_R(self) -> Tensor:
        """Their product."""
        return self.activation_R * self.similarity_R


@dataclass
class PseudoLabelCheck:
    """Judges detections that would become pseudo-labels; holds the prototypes and counts what it did."""

    mode: str
    """``veto``: below the threshold a detection is neither object nor background. ``weight``: it counts less."""
    threshold: float
    prototypes: RegionPrototypes
    seed: int
    num_judged: int = 0
    num_below: int = 0

    def is_due(self, iteration: int, burn_in: int) -> bool:
        """Whether the prototypes are brought up to date in this iteration."""
        return iteration % UPDATE_EVERY == 0 and iteration >= burn_in - _LEAD_UPDATES * UPDATE_EVERY

    @torch.no_grad()
    def update(self, teacher: PerImageRCNN, labeled: Sequence[dict[str, Any]], iteration: int) -> None:
        """Let the teacher look at the labeled objects of a step, and at as many places without one."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        boxes, class_ids = [], []
        background_id = self.prototypes.num_classes
        for example in labeled:
            targets = example["instances"].to(teacher.device)
            own = targets[targets.gt_classes >= 0]  # what a crowd region or an unsure one looks like is not known
            empty = background_boxes(targets.gt_boxes.tensor, targets.image_size, generator)
            boxes.append(Boxes(torch.cat([own.gt_boxes.tensor, empty])))
            class_ids += [own.gt_classes, own.gt_classes.new_full((len(empty),), background_id)]
        features = teacher.region_features(labeled, boxes)
        self.prototypes.update(torch.cat(features), torch.cat(class_ids))

    def judge(self, detections: Sequence[Instances]) -> CheckedDetections:
        """Compute both values of all detections of ``PerImageRCNN.detect_with_regions``."""
        class_ids_R = torch.cat([image.pred_classes for image in detections])
        features_RF = torch.cat([image.box_features for image in detections])
        activation_R = torch.cat([image.activation for image in detections]).cpu()
        return CheckedDetections(activation_R, self.prototypes.similarity(features_RF, class_ids_R))

    def weights(self, checked: CheckedDetections, accepted_R: Tensor) -> Tensor:
        """Return the weight of each detection, (R,) in [0, 1], and count those that are accepted so far.

        ``veto``: 0 below the threshold, else 1. ``weight``: the value over the threshold, at most 1.
        """
        is_below_R = checked.value_R < self.threshold
        self.num_judged += int(accepted_R.sum())
        self.num_below += int((accepted_R & is_below_R).sum())
        if self.mode == "veto":
            return (~is_below_R).float()
        return (checked.value_R / self.threshold).clamp(max=1)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"prototypes": self.prototypes.state_dict(), "num_judged": self.num_judged, "num_below": self.num_below}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.prototypes.load_state_dict(state["prototypes"])
        self.num_judged, self.num_below = state["num_judged"], state["num_below"]
