"""The two heads of the detector: a region proposal network and ROI heads that report one loss per image.

The ROI heads keep the whole class posterior through NMS.

Shape shorthand: N images, A anchors of one image over all levels, R ROIs over the batch, K foreground classes; index K
is background.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F

from detectron_ext import sim_ota
from detectron_ext.embeddings import describe_regions, projection
from detectron_ext.losses import (
    focal_loss,
    foreground,
    is_box_trained,
    is_foreground,
    overlaps_ignored,
    per_image_mean,
    pseudo_label_weight,
    roi_class_weights,
)
from detectron_ext.noise_aware_loss import NoiseAwareLoss
from detectron_ext.objectness_doubt import LEVEL_INDEX, background_weights, objectness_entropy

_OBJECT_WITHOUT_BOX = 2
"""Label of an anchor on an object whose box is not trained."""


@PROPOSAL_GENERATOR_REGISTRY.register()
class PerImageRPN(RPN):
    """Detectron2's RPN; ``losses`` returns (N,) vectors whose mean is the stock loss.

    Shape shorthand: N images, A anchors of one image over all levels.
    """

    background_doubt: list[Tensor | None] | None = None
    """Maps (H, W) of where a teacher is in doubt on each image, or None (docs/method.md#objectness-doubt)."""

    assigns_by_cost = False
    """Whether anchors get their targets by the cost of the predictions (SimOTA) instead of by their own IoU."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """Build as ``RPN`` does.

        Raises:
            ValueError: a loss of the boxes other than smooth L1, the only one that ``losses`` computes.
        """
        super().__init__(**kwargs)
        if self.box_reg_loss_type != "smooth_l1":
            raise ValueError(f"RPN.BBOX_REG_LOSS_TYPE is {self.box_reg_loss_type!r}, expected 'smooth_l1'")

    def objectness_doubt(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the entropy of objectness on level p3 of each image, (H, W) in [0, 1]."""
        [logits_NCHW], _ = self.rpn_head([features[self.in_features[LEVEL_INDEX]]])
        return [objectness_entropy(logits_CHW) for logits_CHW in logits_NCHW]

    def _background_weights(self, anchors: list[Boxes], labels_NA: Tensor, doubt: list[Tensor | None]) -> Tensor:
        """(N, A) 1 - H for background anchors of images with a map, else 1."""
        anchors_A4, cell_px = Boxes.cat(anchors).tensor, self.anchor_generator.strides[LEVEL_INDEX]
        weight_NA = torch.stack(
            [
                anchors_A4.new_ones(len(anchors_A4)) if own is None else background_weights(own, anchors_A4, cell_px)
                for own in doubt
            ]
        )
        return torch.where(labels_NA == 0, weight_NA, 1.0)

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return proposals, and in training the losses, as ``RPN`` does."""
        if not (self.training and self.assigns_by_cost):
            proposed: tuple[list[Instances], dict[str, Tensor]] = super().forward(images, features, gt_instances)
            return proposed
        assert gt_instances is not None
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.predict(maps)
        labels, boxes = self.label_and_sample_by_cost(anchors, logits, deltas, gt_instances)
        losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def predict(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits (N, A) and box deltas (N, A, 4) of every level, in the order of its anchors."""
        logits, deltas = self.rpn_head(maps)
        box_dim = self.anchor_generator.box_dim
        return (
            [level.permute(0, 2, 3, 1).flatten(1) for level in logits],
            [
                level.view(len(level), -1, box_dim, *level.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, -2)
                for level in deltas
            ],
        )

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label and sample anchors as ``RPN`` does; anchors on an ignore region are ignored, not background.

        An anchor on an object whose box is not trained gets the label ``_OBJECT_WITHOUT_BOX``.
        """
        labels, boxes = super().label_and_sample_anchors(anchors, foreground(gt_instances))
        self._mark_ignored(labels, boxes, anchors, gt_instances)
        return labels, boxes

    @torch.no_grad()
    def label_and_sample_by_cost(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_instances: list[Instances],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label and sample anchors as ``label_and_sample_anchors`` does, but by SimOTA (docs/method.md#sim-ota)."""
        every = Boxes.cat(anchors)
        levels = zip(self.anchor_generator.strides, anchors, strict=True)
        strides_A = cat([every.tensor.new_full((len(level),), stride) for stride, level in levels])
        logits_NA = cat(pred_objectness_logits, dim=1).float()
        deltas_NA4 = cat(pred_anchor_deltas, dim=1).float()
        labels, boxes = [], []
        for logits_A, deltas_A4, targets in zip(logits_NA, deltas_NA4, foreground(gt_instances), strict=True):
            targets_G4 = targets.gt_boxes.tensor
            predicted_A4 = self.box2box_transform.apply_deltas(deltas_A4, every.tensor)
            matched_A = sim_ota.assign(every.get_centers(), strides_A, logits_A, predicted_A4, targets_G4)
            labels_A = (matched_A >= 0).to(torch.int8)
            if self.anchor_boundary_thresh >= 0:
                labels_A[~every.inside_box(targets.image_size, self.anchor_boundary_thresh)] = -1
            labels.append(self._subsample_labels(labels_A))
            boxes.append(targets_G4[matched_A.clamp(min=0)] if len(targets) else torch.zeros_like(every.tensor))
        self._mark_ignored(labels, boxes, anchors, gt_instances)
        return labels, boxes

    def _mark_ignored(
        self, labels: list[Tensor], boxes: list[Tensor], anchors: list[Boxes], gt_instances: list[Instances]
    ) -> None:
        """Change the labels of anchors on ignore regions, and of those on objects whose box is not trained."""
        _, background_below_iou, *_ = self.anchor_matcher.thresholds
        anchor_A4 = Boxes.cat(anchors)
        for labels_A, boxes_A4, targets in zip(labels, boxes, gt_instances, strict=True):
            labels_A[overlaps_ignored(anchor_A4, targets, background_below_iou) & (labels_A == 0)] = -1
            trained_E4 = targets.gt_boxes.tensor[is_foreground(targets) & is_box_trained(targets)]
            if len(trained_E4) < len(targets):
                # The matcher does not say which target an anchor was given, but that target's box is known.
                has_trained_box_A = (boxes_A4[:, None] == trained_E4).all(dim=2).any(dim=1)
                labels_A[(labels_A == 1) & ~has_trained_box_A] = _OBJECT_WITHOUT_BOX

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
        if self.background_doubt is not None:
            objectness_NA = objectness_NA * self._background_weights(anchors, labels_NA, self.background_doubt)
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


class PerImageBoxPredictor(FastRCNNOutputLayers):
    """Box predictor with focal loss per image and one detection per ROI.

    Stock Detectron2 turns one ROI into a detection for every class above the threshold and drops the
    posterior. Here a ROI is one detection: its score is the largest foreground probability
    (docs/method.md#eq-1), so that confidence and entropy count every box once.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, focal_gamma: float, **kwargs: Any) -> None:
        """See ``FastRCNNOutputLayers``; ``focal_gamma`` >= 0 is gamma of docs/method.md#eq-8."""
        super().__init__(input_shape, **kwargs)
        if self.box_reg_loss_type != "smooth_l1":
            raise ValueError(f"ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {self.box_reg_loss_type!r}, expected 'smooth_l1'")
        self.focal_gamma = focal_gamma
        self.noise_aware: NoiseAwareLoss | None = None
        # Not persistent: class weights belong to a round, not to the model.
        self.register_buffer("positive_weight_K", torch.ones(self.num_classes), persistent=False)
        self.register_buffer("claimed_background_weight_K", torch.ones(self.num_classes), persistent=False)
        self.positive_weight_K: Tensor
        self.claimed_background_weight_K: Tensor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments of the constructor from a config."""
        return {**super().from_config(cfg, input_shape), "focal_gamma": cfg.MODEL.ROI_HEADS.FOCAL_GAMMA}

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Compute the classification and box loss of every image, (N,) each; 0 for an image without ROIs."""
        logits_RK, deltas = predictions
        num_images = len(proposals)
        sizes_N = torch.tensor([len(image) for image in proposals], device=logits_RK.device)
        image_index_R = torch.repeat_interleave(torch.arange(num_images, device=logits_RK.device), sizes_N)
        class_ids_R = cat([image.gt_classes for image in proposals])
        weight_R = roi_class_weights(logits_RK, class_ids_R, self.positive_weight_K, self.claimed_background_weight_K)
        weight_R = weight_R * pseudo_label_weight(proposals, class_ids_R, self.num_classes)
        class_loss_R = focal_loss(logits_RK, class_ids_R, self.focal_gamma, weight_R)
        if self.noise_aware is not None:
            class_loss_R = self.noise_aware.replace(class_loss_R, logits_RK, proposals, self.focal_gamma, weight_R)
        losses = {
            "loss_cls": per_image_mean(class_loss_R, image_index_R, num_images),
            "loss_box_reg": per_image_mean(
                self._box_loss(deltas.float(), class_ids_R, proposals), image_index_R, num_images
            ),
        }
        return {name: self.loss_weight.get(name, 1.0) * loss_N for name, loss_N in losses.items()}

    def _box_loss(self, deltas: Tensor, class_ids_R: Tensor, proposals: list[Instances]) -> Tensor:
        """(R,) smooth L1 loss of the box deltas; 0 for background ROIs, and where the target's box is not trained."""
        proposal_boxes = cat([image.proposal_boxes.tensor for image in proposals])
        # An image without ground truth carries no gt_boxes; its ROIs are background and never looked up.
        gt_boxes = cat(
            [(image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor for image in proposals]
        )
        is_trained_R = cat([is_box_trained(image) for image in proposals])
        foreground_F = ((class_ids_R < self.num_classes) & is_trained_R).nonzero().squeeze(1)
        class_deltas_F4 = self.select_class_rows(deltas[foreground_F], class_ids_R[foreground_F])
        targets_F4 = self.box2box_transform.get_deltas(proposal_boxes[foreground_F], gt_boxes[foreground_F])
        loss_F = smooth_l1_loss(class_deltas_F4, targets_F4, self.smooth_l1_beta, reduction="none").sum(dim=1)
        return deltas.new_zeros(len(class_ids_R)).index_add(0, foreground_F, loss_F)

    def select_class_rows(self, deltas: Tensor, class_ids_R: Tensor) -> Tensor:
        """Return (R, 4) rows for the given classes, from (R, 4) class-agnostic or (R, K*4) class-specific values."""
        if deltas.shape[1] == 4:
            return deltas
        return deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas), device=deltas.device), class_ids_R]

    def iou_with_targets(self, boxes_R4: Tensor, deltas: Tensor, targets: Instances) -> Tensor:
        """Return the IoU of each target with the box predicted for each region and the target's class, (G, R)."""
        iou_GR = boxes_R4.new_zeros(len(targets), len(boxes_R4))
        for class_id in targets.gt_classes.unique():
            own_G = targets.gt_classes == class_id
            rows_R4 = self.select_class_rows(deltas, class_id.expand(len(boxes_R4)))
            predicted = Boxes(self.box2box_transform.apply_deltas(rows_R4, boxes_R4))
            iou_GR[own_G] = pairwise_iou(targets.gt_boxes[own_G], predicted)
        return iou_GR

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return the detections of every image with ``class_probs`` (R, K+1), and the ROIs they come from."""
        logits_RK, deltas = predictions
        predictions = (logits_RK.float(), deltas.float())
        boxes = self.predict_boxes(predictions, proposals)
        class_probs = self.predict_probs(predictions, proposals)
        results = [
            self.keep_best(boxes_i, class_probs_i, image.image_size)
            for boxes_i, class_probs_i, image in zip(boxes, class_probs, proposals, strict=True)
        ]
        return [instances for instances, _ in results], [kept for _, kept in results]

    def keep_best(self, boxes: Tensor, class_probs_RK: Tensor, image_size: tuple[int, int]) -> tuple[Instances, Tensor]:
        """Return one image's detections after NMS by class, by descending score, and the ROIs they come from.

        Args:
            boxes: (R, 4) class-agnostic or (R, K*4) class-specific boxes, in pixels.
            class_probs_RK: posteriors (R, K+1).
            image_size: height and width in pixels.
        """
        scores_R, class_ids_R = class_probs_RK[:, :-1].max(dim=1)
        boxes_R4 = Boxes(self.select_class_rows(boxes, class_ids_R))
        boxes_R4.clip(image_size)
        finite_R = torch.isfinite(boxes_R4.tensor).all(dim=1) & torch.isfinite(class_probs_RK).all(dim=1)
        kept = (finite_R & (scores_R > self.test_score_thresh) & boxes_R4.nonempty()).nonzero().squeeze(1)
        nms_kept = batched_nms(boxes_R4.tensor[kept], scores_R[kept], class_ids_R[kept], self.test_nms_thresh)
        kept = kept[nms_kept[: self.test_topk_per_image]]
        instances = Instances(image_size)
        instances.pred_boxes = boxes_R4[kept]
        instances.scores = scores_R[kept]
        instances.pred_classes = class_ids_R[kept]
        instances.class_probs = class_probs_RK[kept]
        return instances, kept


@ROI_HEADS_REGISTRY.register()
class PerImageROIHeads(StandardROIHeads):
    """Detectron2's standard heads with the predictor above."""

    describes_regions = False
    """Whether detections come with ``region_features`` and ``stability``: a second pass of the box head over them."""

    assigns_by_cost = False
    """Whether regions get their targets by the cost of the predictions (SimOTA) instead of by their own IoU."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return detections, or in training the sampled proposals and the losses, as ``StandardROIHeads`` does."""
        if not (self.training and self.assigns_by_cost):
            found: tuple[list[Instances], dict[str, Tensor]] = super().forward(images, features, proposals, targets)
            return found
        assert targets is not None
        sampled = self.label_and_sample_by_cost(features, proposals, targets)
        return sampled, self._forward_box(features, sampled)

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Sample proposals as ``ROIHeads`` does, but none on an ignore region."""
        return super().label_and_sample_proposals(self._without_ignored(proposals, targets), foreground(targets))

    @torch.no_grad()
    def label_and_sample_by_cost(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Sample proposals as ``label_and_sample_proposals`` does, but matched by SimOTA (docs/method.md#sim-ota)."""
        candidates, objects = self._without_ignored(proposals, targets), foreground(targets)
        if self.proposal_append_gt:
            candidates = add_ground_truth_to_proposals(objects, candidates)
        boxes = [image.proposal_boxes for image in candidates]
        logits_RK, deltas = self.box_predictor(torch.cat(self.region_features(features, boxes)))
        sizes = [len(image) for image in candidates]
        predictions = zip(logits_RK.float().split(sizes), deltas.float().split(sizes), strict=True)
        return [
            self._sample_by_cost(image, own, logits, rows)
            for image, own, (logits, rows) in zip(candidates, objects, predictions, strict=True)
        ]

    def _sample_by_cost(self, image: Instances, targets: Instances, logits_RK: Tensor, deltas: Tensor) -> Instances:
        boxes_R4 = image.proposal_boxes.tensor
        matched_R = sim_ota.assign_regions(
            image.proposal_boxes.get_centers(),
            F.log_softmax(logits_RK, dim=1),
            self.box_predictor.iou_with_targets(boxes_R4, deltas, targets),
            targets.gt_boxes.tensor,
            targets.gt_classes,
        )
        labels_R = (matched_R >= 0).to(torch.int8)
        if len(targets):
            *_, object_from_iou, _ = self.proposal_matcher.thresholds
            own_iou_R = pairwise_iou(targets.gt_boxes, image.proposal_boxes).max(dim=0).values
            labels_R[(labels_R == 0) & (own_iou_R >= object_from_iou)] = -1
        target_R = matched_R.clamp(min=0)
        sampled, class_ids = self._sample_proposals(target_R, labels_R, targets.gt_classes)
        image = image[sampled]
        image.gt_classes = class_ids
        for name, values in targets.get_fields().items() if len(targets) else ():
            if name.startswith("gt_") and not image.has(name):
                image.set(name, values[target_R[sampled]])
        return image

    def _without_ignored(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        _, background_below_iou, *_ = self.proposal_matcher.thresholds
        return [
            image[~overlaps_ignored(image.proposal_boxes, own, background_below_iou)]
            for image, own in zip(proposals, targets, strict=True)
        ]

    def region_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> list[Tensor]:
        """Return the box head's features of boxes of each image, (R, F) each."""
        found_RF = self.box_head(self.box_pooler([features[name] for name in self.box_in_features], boxes))
        return list(torch.split(found_RF, [len(image) for image in boxes]))

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        found = super()._forward_box(features, proposals)
        if self.describes_regions and not self.training:
            self._describe_regions([features[name] for name in self.box_in_features], found)
        return found

    def _describe_regions(self, features: list[Tensor], found: list[Instances]) -> None:
        boxes = [image.pred_boxes for image in found]
        region_features_RF = self.box_head(self.box_pooler(features, boxes))
        _, deltas = self.box_predictor(region_features_RF)
        refined = self.box_predictor.box2box_transform.apply_deltas(deltas.float(), Boxes.cat(boxes).tensor)
        class_ids_R = cat([image.pred_classes for image in found])
        describe_regions(
            found,
            region_features_RF,
            self.box_predictor.select_class_rows(refined, class_ids_R),
            projection(region_features_RF.shape[1]).to(region_features_RF.device),
        )

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = PerImageBoxPredictor(cfg, parts["box_head"].output_shape)
        return parts
