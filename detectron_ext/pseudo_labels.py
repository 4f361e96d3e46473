"""The teacher's detections as training targets."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectron_ext.ignore_regions import IGNORE_LABEL
from detectron_ext.meta_arch import PerImageRCNN


class ScoreThreshold:
    """Score a box needs, per class (METHOD section 6).

    ``fixed``: the same for all. ``adaptive``: scaled by the class's running mean teacher score over that of the
    surest class, so that a class the teacher is less sure of still gets pseudo-labels. From ``ignore_score_threshold`` up to the
    threshold the teacher is unsure.
    """

    def __init__(
        self, mode: str, threshold: float, num_classes: int, momentum: float = 0.99, ignore_score_threshold: float = 1.0
    ) -> None:
        """``threshold`` and ``ignore_score_threshold`` in [0, 1]; ``momentum`` of the running mean per image batch."""
        self._adaptive = mode == "adaptive"
        self._threshold = threshold
        self.ignore_score_threshold = ignore_score_threshold
        self._momentum = momentum
        self.mean_score_K = torch.ones(num_classes)

    def class_thresholds(self) -> Tensor:
        """(K,) threshold of every class."""
        if not self._adaptive:
            return torch.full_like(self.mean_score_K, self._threshold)
        return self._threshold * self.mean_score_K / self.mean_score_K.max()

    def accepts(self, scores_R: Tensor, class_ids_R: Tensor) -> Tensor:
        """(R,) whether a detection becomes a pseudo-label."""
        return scores_R >= self.class_thresholds()[class_ids_R]

    def update(self, scores_R: Tensor, class_ids_R: Tensor) -> None:
        """Update the running means with the teacher's detections above half the threshold."""
        counted_R = scores_R > self._threshold / 2
        for k in sorted(set(class_ids_R[counted_R].tolist())):
            mean = scores_R[counted_R & (class_ids_R == k)].mean()
            self.mean_score_K[k] = self._momentum * self.mean_score_K[k] + (1 - self._momentum) * mean


@torch.no_grad()
def pseudo_label(
    teacher: PerImageRCNN, weak_inputs: list[dict[str, Any]], threshold: ScoreThreshold
) -> list[Instances]:
    """Targets for the strong views of the same images; an image may get none, and never a made-up box.

    Args:
        teacher: in eval mode.
        weak_inputs: Detectron2 inputs of the weak views.
        threshold: updated by what the teacher sees.

    Returns:
        One ``Instances`` per image with ``gt_boxes`` in pixels of the view and ``gt_classes``, of which some may be
        ``IGNORE_LABEL``.
    """
    targets = []
    for detections, _ in teacher(weak_inputs):
        scores_R, class_ids_R = detections.scores.cpu(), detections.pred_classes.cpu()
        threshold.update(scores_R, class_ids_R)
        accepted_R = threshold.accepts(scores_R, class_ids_R)
        kept = (
            (accepted_R | (scores_R >= threshold.ignore_score_threshold))
            .nonzero()
            .squeeze(1)
            .to(detections.scores.device)
        )
        target = Instances(detections.image_size)
        target.gt_boxes = Boxes(detections.pred_boxes.tensor[kept])
        target.gt_classes = detections.pred_classes.where(accepted_R.to(kept.device), IGNORE_LABEL)[kept]
        targets.append(target)
    return targets
