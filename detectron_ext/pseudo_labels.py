"""The teacher's detections as training targets.

Shape shorthand: R detections over the unlabeled images of a step, K foreground classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectron_ext.distributed import all_reduce_mean
from detectron_ext.losses import IGNORE_LABEL, set_weight
from detectron_ext.mean_posterior import detect_by_mean_posterior
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pseudo_label_checks import PseudoLabelCheck
from detectron_ext.relations import MAX_REGIONS, TeacherRegions
from detectron_ext.teacher_fusion import TeacherFusion


class ScoreThreshold:
    """Score that a detection needs to become a pseudo-label, per class (docs/method.md#eq-22).

    ``fixed``: the same for all classes. ``adaptive``: scaled by the class's running mean score over the largest of
    these means, so that classes with lower scores still get pseudo-labels; never below half the threshold, where
    detections begin to count. ``precision``: measured before the training, for classes with
    enough evidence. A class that is excluded gets no pseudo-label; its detections are ignore regions. The state stays
    on the CPU, so that a checkpoint loads the same on every machine.
    """

    def __init__(
        self,
        mode: str,
        threshold: float,
        num_classes: int,
        momentum: float = 0.99,
        ignore_score_threshold: float = 1.0,
        measured_thresholds: Mapping[int, float] | None = None,
        excluded_classes: Sequence[int] = (),
    ) -> None:
        """Begin without any observed class.

        Args:
            mode: ``fixed``, ``adaptive`` or ``precision``.
            threshold: in [0, 1].
            num_classes: K.
            momentum: of the running mean, per step in which the class is detected.
            ignore_score_threshold: in [0, 1]; from here up to the threshold a detection is an ignore region.
            measured_thresholds: of mode ``precision``, by class index; the other classes have ``threshold``.
            excluded_classes: indices of classes that take no part (docs/method.md#precision).
        """
        self._adaptive = mode == "adaptive"
        self._threshold = threshold
        self._momentum = momentum
        self.ignore_score_threshold = ignore_score_threshold
        self.num_classes = num_classes
        self._fixed_K = torch.full((num_classes,), threshold)
        for class_id, measured in (measured_thresholds or {}).items():
            self._fixed_K[class_id] = measured
        self._excluded_K = torch.zeros(num_classes, dtype=torch.bool)
        self._excluded_K[list(excluded_classes)] = True
        # The mean is the quotient of two running sums that both begin at 0. So it has no bias toward an initial
        # value, neither for a frequent class in the first steps nor for a rare one at any time.
        self._score_sum_K = torch.zeros(num_classes, dtype=torch.float64)
        self._count_K = torch.zeros(num_classes, dtype=torch.float64)

    def class_thresholds(self) -> Tensor:
        """Return the threshold of every class, (K,); of a class not observed yet the threshold itself."""
        observed_K = self._count_K > 0
        if not self._adaptive or not observed_K.any():
            return self._fixed_K
        mean_K = self._score_sum_K / self._count_K.clamp(min=torch.finfo(torch.float64).tiny)
        ratio_K = (mean_K / mean_K[observed_K].max()).clamp(min=0.5)
        return torch.where(observed_K, self._threshold * ratio_K, self._threshold).float()

    def accepts(self, scores_R: Tensor, class_ids_R: Tensor) -> Tensor:
        """Return whether each detection becomes a pseudo-label, (R,) bool; all on the CPU."""
        return (scores_R >= self.class_thresholds()[class_ids_R]) & ~self._excluded_K[class_ids_R]

    def ignores(self, scores_R: Tensor, class_ids_R: Tensor) -> Tensor:
        """Return whether each detection that is not accepted becomes an ignore region, (R,) bool; all on the CPU.

        Of an excluded class it does from half the threshold on, where detections begin to count.
        """
        is_excluded_R = self._excluded_K[class_ids_R] & (scores_R >= self._threshold / 2)
        return (scores_R >= self.ignore_score_threshold) | is_excluded_R

    def update(self, scores_R: Tensor, class_ids_R: Tensor) -> None:
        """Add the detections of a step above half the threshold, of all processes, to the running means."""
        counted_R = scores_R > self._threshold / 2
        class_ids_R, scores_R = class_ids_R[counted_R], scores_R[counted_R].double()
        step_2K = torch.stack(
            [
                torch.bincount(class_ids_R, weights=scores_R, minlength=self.num_classes),
                torch.bincount(class_ids_R, minlength=self.num_classes).double(),
            ]
        )
        score_sum_K, count_K = all_reduce_mean(step_2K)
        seen_K = count_K > 0
        for running_K, new_K in ((self._score_sum_K, score_sum_K), (self._count_K, count_K)):
            running_K[seen_K] = self._momentum * running_K[seen_K] + (1 - self._momentum) * new_K[seen_K]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running sums."""
        return {"score_sum_K": self._score_sum_K.clone(), "count_K": self._count_K.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the running sums, on the CPU wherever they were loaded to."""
        self._score_sum_K = state["score_sum_K"].cpu().clone()
        self._count_K = state["count_K"].cpu().clone()


class PseudoLabels(NamedTuple):
    """Targets of the unlabeled images of a step."""

    targets: list[Instances]
    """One per image, with ``gt_boxes`` in pixels of the view, ``gt_classes``, some of them ``IGNORE_LABEL``,
    ``gt_score``, the teacher's, and ``gt_weight`` where they are checked."""
    num_boxes_K: Tensor
    """Pseudo-labels of each class over all images, (K,) on the CPU; ignore regions are not counted."""
    regions: list[TeacherRegions] | None
    """The teacher's best detections of each image with their features, whatever their scores; None: not wanted."""


@torch.no_grad()
def pseudo_label(
    teacher: PerImageRCNN,
    weak_inputs: list[dict[str, Any]],
    threshold: ScoreThreshold,
    further_teachers: Sequence[PerImageRCNN] = (),
    check: PseudoLabelCheck | None = None,
    fusion: TeacherFusion | None = None,
    *,
    wants_regions: bool = False,
) -> PseudoLabels:
    """Make targets for the strong views of the same images; an image may get none, and never an invented box.

    Args:
        teacher: in eval mode.
        weak_inputs: Detectron2 inputs of the weak views, at least one.
        threshold: updated by the teacher's detections.
        further_teachers: in eval mode; their class posteriors are averaged with the teacher's.
        check: of the detections that the threshold accepts; None: there is none.
        fusion: of the detections with those of other views and earlier teachers; None: they are taken as they are.
        wants_regions: whether to return regions of each image.
    """
    with_regions = wants_regions or check is not None
    detections = _detect(teacher, weak_inputs, further_teachers, fusion, with_regions=with_regions)
    sizes = [len(instances) for instances in detections]
    # All images at once: scores and classes cross to the CPU in one copy each, and the indices go back in one.
    scores_R = torch.cat([instances.scores for instances in detections]).float().cpu()
    class_ids_R = torch.cat([instances.pred_classes for instances in detections]).cpu()
    threshold.update(scores_R, class_ids_R)
    accepted_R = threshold.accepts(scores_R, class_ids_R)
    used_R = accepted_R | threshold.ignores(scores_R, class_ids_R)
    weight_R = None if check is None else check.weights(check.judge(detections), accepted_R)
    if weight_R is not None:
        accepted_R = accepted_R & (weight_R > 0)  # what is refused stays used: neither object nor background
    label_R = class_ids_R.where(accepted_R, IGNORE_LABEL)
    device = detections[0].scores.device
    targets = []
    for instances, used, label in zip(detections, torch.split(used_R, sizes), torch.split(label_R, sizes), strict=True):
        kept = used.nonzero().squeeze(1)
        target = Instances(instances.image_size)
        kept_there = kept.to(device, non_blocking=True)
        target.gt_boxes = Boxes(instances.pred_boxes.tensor[kept_there])
        target.gt_score = instances.scores[kept_there].float()
        target.gt_classes = label[kept].to(device, non_blocking=True)
        targets.append(target)
    if weight_R is not None:
        weights = torch.split(weight_R[used_R], [len(target) for target in targets])
        for target, weight in zip(targets, weights, strict=True):
            set_weight(target, weight)
    num_boxes_K = torch.bincount(class_ids_R[accepted_R], minlength=threshold.num_classes)
    return PseudoLabels(targets, num_boxes_K, _best_regions(detections) if wants_regions else None)


def _best_regions(detections: Sequence[Instances]) -> list[TeacherRegions]:
    """The first detections of each image: they come by falling score."""
    best = (instances[:MAX_REGIONS] for instances in detections)
    return [TeacherRegions(image.pred_boxes, image.box_features) for image in best]


def _detect(
    teacher: PerImageRCNN,
    weak_inputs: list[dict[str, Any]],
    further_teachers: Sequence[PerImageRCNN],
    fusion: TeacherFusion | None,
    *,
    with_regions: bool,
) -> list[Instances]:
    if not further_teachers and fusion is None:
        found = teacher.detect_with_regions(weak_inputs) if with_regions else teacher(weak_inputs)
        return [instances for instances, _ in found]

    def detect_now(inputs: list[dict[str, Any]]) -> list[Instances]:
        if further_teachers:
            return detect_by_mean_posterior([teacher, *further_teachers], inputs)
        return [instances for instances, _ in teacher(inputs)]

    detections = detect_now(weak_inputs) if fusion is None else fusion.detect(detect_now, weak_inputs)
    if with_regions:
        teacher.attach_regions(weak_inputs, detections)
    return detections
