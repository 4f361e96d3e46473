"""Faster R-CNN that reports losses per image in training and full posteriors in inference."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

# These imports only register the parts under the names that build_cfg writes.
from detectron_ext import heads as _heads  # noqa: F401
from detectron_ext.activation_map import LEVEL, activation_energy, activation_in_boxes
from detectron_ext.backbone import TimmBackbone, fold_frozen_norms, load_body_weights
from detectron_ext.config import DetectorSpec, build_cfg
from detectron_ext.embeddings import embed_images, recorded_stages
from detectron_ext.losses import DetectionLosses
from detectron_ext.noise_aware_loss import NoiseAwareLoss, mark_pseudo_labeled
from detectron_ext.relations import TeacherRegions, relation_loss

_Result = TypeVar("_Result")
Naming = Literal["exact", "suffix", "caffe2"]
"""How a checkpoint names its tensors: as this model does; without the model's prefixes, as an ImageNet backbone; or as
Detectron and Caffe2 did."""


class LoadReport(NamedTuple):
    """What a new detector took from a checkpoint."""

    num_taken: int
    other_shape: list[str]
    """Layers of the same name and another shape, such as the class layers of another data set: they start anew."""
    not_in_model: list[str]
    not_in_checkpoint: list[str]


class _ImageOutput(NamedTuple):
    """What ``PerImageRCNN`` says of one image."""

    detections: Any
    embedding: Tensor
    doubt_HW: Tensor | None
    """Entropy of objectness without the padding, where it is asked for."""


@META_ARCH_REGISTRY.register()
class PerImageRCNN(GeneralizedRCNN):
    """Detectron2's two-stage detector; ``forward`` in training gives ``DetectionLosses``.

    Inputs are Detectron2's: one dict per image with ``image`` (3, H, W) RGB in 0..255, uint8 or float32, in
    training ``instances`` with ``gt_boxes`` and ``gt_classes``, and ``is_pseudo_labeled`` where they are the teacher's.
    """

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize, pad and batch; a model-zoo detector gets the blue channel first, as it was trained."""
        images = [example["image"].to(self.device, non_blocking=True) for example in batched_inputs]
        if self.input_format == "BGR":
            images = [image.flip(0) for image in images]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses per image in training; else per image its detections and its embedding (``EMBEDDING_DIM``,).

        Detections are in pixels of the given image, and do not depend on the other images of the batch.
        """
        if not self.training:
            return [output[:2] for output in self._detect_all(batched_inputs)]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = [example["instances"].to(self.device) for example in batched_inputs]
        doubt = [example.get("objectness_doubt") for example in batched_inputs]
        is_known = any(doubt_HW is not None for doubt_HW in doubt)
        self.proposal_generator.background_doubt = doubt if is_known else None
        proposals, rpn = self.proposal_generator(images, features, targets)
        if self.roi_heads.box_predictor.noise_aware is not None:
            for example, *both in zip(batched_inputs, targets, proposals, strict=True):
                for instances in both:
                    mark_pseudo_labeled(instances, example.get("is_pseudo_labeled", False))
        _, roi = self.roi_heads(images, features, proposals, targets)
        relations_N = self._relation_losses(batched_inputs, features)
        return DetectionLosses(
            rpn["loss_rpn_cls"], rpn["loss_rpn_loc"], roi["loss_cls"], roi["loss_box_reg"], relations_N
        )

    def _relation_losses(self, batched_inputs: list[dict[str, Any]], features: dict[str, Tensor]) -> Tensor | None:
        """Compare regions with what a teacher saw of them (``regions`` of an input), (N,); None where none has any."""
        regions: list[TeacherRegions | None] = [example.get("regions") for example in batched_inputs]
        if all(one is None for one in regions):
            return None
        boxes = [Boxes(features["p3"].new_zeros(0, 4)) if one is None else one.boxes for one in regions]
        found = self.roi_heads.region_features(features, boxes)
        return torch.stack(
            [
                relation_loss(own_RF, own_RF if one is None else one.features_RF)
                for own_RF, one in zip(found, regions, strict=True)
            ]
        )

    def detect_with_regions(self, batched_inputs: list[dict[str, Any]]) -> list[tuple[Any, Tensor]]:
        """Detect as ``forward`` does in eval mode, with ``box_features`` (N, F) and ``activation`` (N,) of detections.

        These are the box head's features of the detected box, and how much more active the feature map is in it than
        elsewhere (docs/method.md#pseudo-label-checks).
        """
        return [output[:2] for output in self._detect_all(batched_inputs, with_regions=True)]

    def detect_with_doubt(self, batched_inputs: list[dict[str, Any]]) -> list[tuple[Any, Tensor, Tensor]]:
        """Detect as ``forward`` does in eval mode, with the entropy of objectness of each image, (H, W) in [0, 1].

        Cells of the padding are left out (docs/method.md#objectness-doubt).
        """
        found = self._detect_all(batched_inputs, with_doubt=True)
        return [(one.detections, one.embedding, one.doubt_HW) for one in found if one.doubt_HW is not None]

    def region_features(self, batched_inputs: Sequence[dict[str, Any]], boxes: Sequence[Boxes]) -> list[Tensor]:
        """Return the box head's features of given boxes of each image, (R, F) each."""

        def describe(indices: list[int]) -> list[Tensor]:
            features = self.backbone(self.preprocess_image([batched_inputs[index] for index in indices]).tensor)
            found: list[Tensor] = self.roi_heads.region_features(features, [boxes[index] for index in indices])
            return found

        return self.map_by_padded_shape(batched_inputs, describe)

    def attach_regions(self, batched_inputs: Sequence[dict[str, Any]], detections: Sequence[Any]) -> None:
        """Add to given detections what ``detect_with_regions`` gives, for one more pass of the backbone."""

        def attach(indices: list[int]) -> list[Any]:
            images = self.preprocess_image([batched_inputs[index] for index in indices])
            own = [detections[index] for index in indices]
            self._add_regions(own, self.backbone(images.tensor), images)
            return own

        self.map_by_padded_shape(batched_inputs, attach)

    @torch.no_grad()
    def objectness_doubt(self, batched_inputs: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Return where the proposal network is in doubt, (H, W) of each image (docs/method.md#objectness-doubt)."""

        def doubt(indices: list[int]) -> list[Tensor]:
            features = self.backbone(self.preprocess_image([batched_inputs[index] for index in indices]).tensor)
            found: list[Tensor] = self.proposal_generator.objectness_doubt(features)
            return found

        return self.map_by_padded_shape(batched_inputs, doubt)

    def activation_energies(self, features: Mapping[str, Tensor], images: ImageList) -> list[Tensor]:
        """Return the energy in every cell of level p3 of each image, without the padding, (H, W) each."""
        cell_px = self.activation_cell_px
        return [
            activation_energy(image_features[:, : -(-height // cell_px), : -(-width // cell_px)].float())
            for image_features, (height, width) in zip(features[LEVEL], images.image_sizes, strict=True)
        ]

    @property
    def activation_cell_px(self) -> int:
        """Side of a cell of ``activation_energies``, in pixels of the model's input."""
        return int(self.backbone.output_shape()[LEVEL].stride)

    def map_by_padded_shape(
        self, batched_inputs: Sequence[dict[str, Any]], function: Callable[[list[int]], Sequence[_Result]]
    ) -> list[_Result]:
        """Call ``function`` with the indices of the images that are padded to the same shape; one result an image.

        An image padded to a larger mate's shape would get other results: the group norm of the pyramid averages
        over the padding, and so does the embedding.
        """
        stride = max(self.backbone.size_divisibility, 1)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, example in enumerate(batched_inputs):
            height, width = example["image"].shape[-2:]
            groups[-(-height // stride), -(-width // stride)].append(index)
        results: dict[int, _Result] = {}
        for indices in groups.values():
            results.update(zip(indices, function(indices), strict=True))
        return [results[index] for index in range(len(batched_inputs))]

    def _detect_all(
        self, batched_inputs: list[dict[str, Any]], *, with_regions: bool = False, with_doubt: bool = False
    ) -> list[_ImageOutput]:
        def detect(indices: list[int]) -> list[_ImageOutput]:
            return self._detect([batched_inputs[index] for index in indices], with_regions, with_doubt)

        return self.map_by_padded_shape(batched_inputs, detect)

    def _detect(self, batched_inputs: list[dict[str, Any]], with_regions: bool, with_doubt: bool) -> list[_ImageOutput]:
        images = self.preprocess_image(batched_inputs)
        with recorded_stages(self.backbone.bottom_up) as stages:
            features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        if with_regions:
            self._add_regions(detections, features, images)
        doubt: list[Tensor | None] = [None] * len(detections)
        if with_doubt:
            maps, cell_px = self.proposal_generator.objectness_doubt(features), self.activation_cell_px
            sizes_px = images.image_sizes
            doubt = [
                doubt_HW[: -(-height // cell_px), : -(-width // cell_px)]
                for doubt_HW, (height, width) in zip(maps, sizes_px, strict=True)
            ]
        return list(map(_ImageOutput, detections, embed_images(stages), doubt))

    def _add_regions(self, detections: list[Any], features: dict[str, Tensor], images: ImageList) -> None:
        boxes = [image.pred_boxes for image in detections]
        energies = self.activation_energies(features, images)
        found = self.roi_heads.region_features(features, boxes)
        for image, box_features, energy in zip(detections, found, energies, strict=True):
            image.box_features = box_features
            image.activation = activation_in_boxes(energy, image.pred_boxes.tensor, self.activation_cell_px)

    def set_class_weights(self, positive_K: Tensor, claimed_background_K: Tensor) -> None:
        """Set the factors of the ROI classification loss by class, (K,) each (docs/method.md#roi-weight)."""
        predictor = self.roi_heads.box_predictor
        predictor.positive_weight_K.copy_(positive_K)
        predictor.claimed_background_weight_K.copy_(claimed_background_K)

    def set_anchor_assigner(self, name: Literal["iou", "sim_ota"]) -> None:
        """Set how anchors get their targets in training: by their IoU, or by SimOTA (docs/method.md#sim-ota)."""
        self.proposal_generator.assigns_by_cost = name == "sim_ota"

    def set_roi_assigner(self, name: Literal["iou", "sim_ota"]) -> None:
        """Set how regions of the second stage get their targets in training, as ``set_anchor_assigner`` does."""
        self.roi_heads.assigns_by_cost = name == "sim_ota"

    def set_noise_aware_loss(self, loss: NoiseAwareLoss | None) -> None:
        """Set what replaces the focal loss in images with pseudo-labels (docs/method.md#noise-aware); None: nothing."""
        self.roi_heads.box_predictor.noise_aware = loss


def build_detector(spec: DetectorSpec, device: str, backbone_state: Mapping[str, Tensor] | None = None) -> PerImageRCNN:
    """Build a new detector on ``device``, in training mode; with the backbone's weights when given.

    Raises:
        ValueError: unknown backbone, or weights that do not fit it.
    """
    model = build_model(build_cfg(spec, device))
    body = model.backbone.bottom_up
    fold_frozen_norms(body)
    if backbone_state is not None and isinstance(body, TimmBackbone):
        load_body_weights(body, backbone_state)
    return model


def cpu_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Copy the model's state to the CPU, as saved to disk."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor], naming: Naming) -> LoadReport:
    """Start from a checkpoint of another data set: what fits by name and shape is taken, the rest stays random.

    Args:
        model: a new detector.
        state: the checkpoint's tensors.
        naming: how they are named.

    Raises:
        ValueError: none fits.
    """
    model_state = model.state_dict()
    if naming != "exact":
        state = align_and_update_state_dicts(model_state, dict(state), c2_conversion=naming == "caffe2")
    matching = {
        name: tensor
        for name, tensor in state.items()
        if name in model_state and model_state[name].shape == tensor.shape
    }
    if not matching:
        raise ValueError(f"weights have {len(state)} tensors of which none fits the model's {len(model_state)}")
    model.load_state_dict(matching, strict=False)
    return LoadReport(
        num_taken=len(matching),
        other_shape=sorted(name for name in state if name in model_state and name not in matching),
        not_in_model=sorted(name for name in state if name not in model_state),
        not_in_checkpoint=sorted(name for name in model_state if name not in state),
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a saved state.

    Raises:
        ValueError: names or shapes differ from the model's.
    """
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the model: {str(error).splitlines()[0]}") from None


def mixed_precision_dtype(device: str) -> torch.dtype | None:
    """Return the type that mixed precision computes in on ``device``; None on a CPU, which has full precision only.

    bfloat16 where the GPU has it; float16 on GPUs before Ampere, where training needs a gradient scaler.
    """
    if not device.startswith("cuda"):
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: str, enabled: bool) -> torch.autocast:
    """Return the context of mixed precision; without effect when disabled, or on a CPU."""
    dtype = mixed_precision_dtype(device) if enabled else None
    return torch.autocast(device.partition(":")[0], dtype=dtype or torch.bfloat16, enabled=dtype is not None)
