"""Detections of the teacher, fused with those it has of the mirrored view and those of earlier teachers.

docs/method.md#fusion.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.weighted_box_fusion import fuse

MIN_WEIGHT = 0.001
"""An earlier teacher with a lower weight is not asked."""

Detect = Callable[[list[dict[str, Any]]], list[Instances]]


@dataclass(frozen=True)
class FusionSpec:
    """What is fused, and how."""

    mirrors: bool
    """Whether the teacher sees each view mirrored too."""
    max_earlier: int
    """Earlier teachers that are kept at most; the oldest goes first."""
    every: int
    """Iterations between two teachers that are kept."""
    decay: float
    """Iterations after which the weight of an earlier teacher has fallen to 1/e."""
    iou_threshold: float
    """See ``weighted_box_fusion.fuse``."""


class TeacherFusion:
    """Keeps earlier teachers, and fuses what all say of the weak views."""

    def __init__(self, spec: FusionSpec) -> None:
        """Begin without an earlier teacher."""
        self._spec = spec
        self._earlier: list[tuple[int, PerImageRCNN]] = []
        self._now = 0

    def begin_step(self, teacher: PerImageRCNN, elapsed: int) -> None:
        """Keep a copy of the teacher where one is due.

        Args:
            teacher: as it is before the step.
            elapsed: iterations since the end of burn-in.
        """
        self._now = elapsed
        if self._spec.max_earlier and elapsed % self._spec.every == 0:
            self._earlier = [*self._earlier, (elapsed, copy.deepcopy(teacher))][-self._spec.max_earlier :]

    def detect(self, detect_now: Detect, weak_inputs: list[dict[str, Any]]) -> list[Instances]:
        """Return the fused detections of each weak view, by falling score; they have no ``class_probs``.

        Args:
            detect_now: detects as the teacher is now.
            weak_inputs: Detectron2 inputs.
        """
        answers, weights = [detect_now(weak_inputs)], [1.0]
        if self._spec.mirrors:
            mirrored = detect_now([{**one, "image": one["image"].flip(2)} for one in weak_inputs])
            answers.append([mirror(one) for one in mirrored])
            weights.append(1.0)
        for kept_at, earlier in self._earlier:
            weight = math.exp((kept_at - self._now) / self._spec.decay)
            if kept_at < self._now and weight >= MIN_WEIGHT:
                answers.append([found for found, _ in earlier(weak_inputs)])
                weights.append(weight)
        return [fuse(views, weights, self._spec.iou_threshold) for views in zip(*answers, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the earlier teachers."""
        return {"earlier": [{"kept_at": kept_at, "teacher": one.state_dict()} for kept_at, one in self._earlier]}

    def load_state_dict(self, state: dict[str, Any], teacher: PerImageRCNN) -> None:
        """Restore the earlier teachers; ``teacher`` is a network like theirs."""
        self._earlier = []
        for stored in state["earlier"]:
            earlier = copy.deepcopy(teacher)
            earlier.load_state_dict(stored["teacher"])
            self._earlier.append((stored["kept_at"], earlier))


@torch.no_grad()
def mirror(detections: Instances) -> Instances:
    """Return the detections of a view as they lie in its mirror image: boxes, scores and classes."""
    width = detections.image_size[1]
    left, top, right, bottom = detections.pred_boxes.tensor.unbind(dim=1)
    mirrored = Instances(detections.image_size)
    mirrored.pred_boxes = Boxes(torch.stack([width - right, top, width - left, bottom], dim=1))
    mirrored.scores, mirrored.pred_classes = detections.scores, detections.pred_classes
    return mirrored
