"""Region proposal network that reports one loss per image."""

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.box_supervision import is_box_trained
from detectron_ext.ignore_regions import foreground, is_foreground, overlaps_ignored

_OBJECT_WITHOUT_BOX = 2
"""Label of an anchor on an object whose box is not trained."""


@PROPOSAL_GENERATOR_REGISTRY.register()
class PerImageRPN(RPN):
    """Detectron2's RPN; ``losses`` returns (N,) vectors whose mean is the stock loss.

    Shape shorthand: N images, A anchors of one image over all levels.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """Build as ``RPN`` does.

        Raises:
            ValueError: a loss of the boxes other than smooth L1, the only one that ``losses`` computes.
        """
        super().__init__(**kwargs)
        if self.box_reg_loss_type != "smooth_l1":
            raise ValueError(f"RPN.BBOX_REG_LOSS_TYPE is {self.box_reg_loss_type!r}, expected 'smooth_l1'")

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label and sample anchors as ``RPN`` does; anchors on an ignore region are ignored, not background.

        An anchor on an object whose box is not trained gets the label ``_OBJECT_WITHOUT_BOX``.
        """
        labels, boxes = super().label_and_sample_anchors(anchors, foreground(gt_instances))
        _, background_below_iou, *_ = self.anchor_matcher.thresholds
        anchor_A4 = Boxes.cat(anchors)
        for labels_A, boxes_A4, targets in zip(labels, boxes, gt_instances, strict=True):
            labels_A[overlaps_ignored(anchor_A4, targets, background_below_iou) & (labels_A == 0)] = -1
            trained_E4 = targets.gt_boxes.tensor[is_foreground(targets) & is_box_trained(targets)]
            if len(trained_E4) < len(targets):
                # The matcher does not say which target an anchor was given, but that target's box is known.
                has_trained_box_A = (boxes_A4[:, None] == trained_E4).all(dim=2).any(dim=1)
                labels_A[(labels_A == 1) & ~has_trained_box_A] = _OBJECT_WITHOUT_BOX
        return labels, boxes

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Compute the objectness and box loss of every image, divided by the anchors sampled per image.

        Args and names as in ``RPN.losses``. Labels are 1 object, 2 object whose box is not trained, 0 background,
        -1 ignored; an image without boxes has background anchors only.
        """
        labels_NA = torch.stack(gt_labels)
        logits_NA = cat(pred_objectness_logits, dim=1).float()
        objectness_NA = F.binary_cross_entropy_with_logits(logits_NA, labels_NA.clamp(0, 1).float(), reduction="none")
        objectness_N = (objectness_NA * (labels_NA >= 0)).sum(dim=1)

        positive_NA = labels_NA == 1
        anchor_A4 = Boxes.cat(anchors).tensor
        image_index_P, anchor_index_P = positive_NA.nonzero(as_tuple=True)
        targets_P4 = self.box2box_transform.get_deltas(
            anchor_A4[anchor_index_P], torch.stack(gt_boxes)[image_index_P, anchor_index_P]
        )
        deltas_P4 = cat(pred_anchor_deltas, dim=1)[image_index_P, anchor_index_P].float()
        boxes_P = smooth_l1_loss(deltas_P4, targets_P4, self.smooth_l1_beta, reduction="none").sum(dim=1)
        boxes_N = objectness_N.new_zeros(len(gt_labels)).index_add(0, image_index_P, boxes_P)

        losses = {"loss_rpn_cls": objectness_N, "loss_rpn_loc": boxes_N}
        return {
            name: self.loss_weight.get(name, 1.0) * loss_N / self.batch_size_per_image
            for name, loss_N in losses.items()
        }
