"""Faster R-CNN that reports losses per image in training and full posteriors in inference."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from torch import Tensor, nn

# These imports only register the parts under the names that build_cfg writes.
from detectron_ext import roi_heads as _roi_heads  # noqa: F401
from detectron_ext import rpn as _rpn  # noqa: F401
from detectron_ext.backbone import TimmBackbone, load_body_weights
from detectron_ext.config import DetectorSpec, build_cfg
from detectron_ext.losses import DetectionLosses


@META_ARCH_REGISTRY.register()
class PerImageRCNN(GeneralizedRCNN):
    """Detectron2's two-stage detector; ``forward`` in training gives ``DetectionLosses``.

    Inputs are Detectron2's: one dict per image with ``image`` (3, H, W) RGB in 0..255, in training
    ``instances`` with ``gt_boxes`` and ``gt_classes``.
    """

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Normalize, pad and batch; a model-zoo detector gets the blue channel first, as it was trained."""
        if self.input_format == "BGR":
            batched_inputs = [{**example, "image": example["image"].flip(0)} for example in batched_inputs]
        return super().preprocess_image(batched_inputs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses per image in training; detections in the resized image else."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if not self.training:
            return self._detect(images, features)
        targets = [example["instances"].to(self.device) for example in batched_inputs]
        proposals, rpn = self.proposal_generator(images, features, targets)
        _, roi = self.roi_heads(images, features, proposals, targets)
        return DetectionLosses(rpn["loss_rpn_cls"], rpn["loss_rpn_loc"], roi["loss_cls"], roi["loss_box_reg"])

    def _detect(self, images: Any, features: dict[str, Tensor]) -> list[Any]:
        """Per image: its detections, and one feature vector (C,) of the whole image."""
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        # The coarsest map that still has content of its own describes the image as a whole.
        embedding_NC = features["p5"].float().mean(dim=(2, 3))
        return list(zip(detections, embedding_NC, strict=True))

    def set_class_weights(self, class_weight: Tensor) -> None:
        """Weight the foreground classes' focal loss, (K,); background keeps 1."""
        self.roi_heads.box_predictor.class_weight_K[:-1] = class_weight.to(self.device)


def build_detector(spec: DetectorSpec, device: str, backbone_state: Mapping[str, Tensor] | None = None) -> PerImageRCNN:
    """A new detector on ``device``, in training mode; with the backbone's weights when given.

    Raises:
        ValueError: unknown backbone, or weights that do not fit it.
    """
    model = build_model(build_cfg(spec, device))
    body = model.backbone.bottom_up
    if backbone_state is not None and isinstance(body, TimmBackbone):
        load_body_weights(body, backbone_state)
    return model


def cpu_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU, as saved to disk."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor], *, convert_names: bool) -> int:
    """Start from a checkpoint of another data set: what fits by name and shape is taken, the rest stays random.

    Args:
        model: a new detector.
        state: the checkpoint's tensors.
        convert_names: the names are those of Detectron or of an ImageNet backbone; translate them first.

    Returns:
        How many tensors were taken.

    Raises:
        ValueError: none fits.
    """
    model_state = model.state_dict()
    if convert_names:
        state = align_and_update_state_dicts(model_state, dict(state), c2_conversion=True)
    matching = {
        name: tensor
        for name, tensor in state.items()
        if name in model_state and model_state[name].shape == tensor.shape
    }
    if not matching:
        raise ValueError(f"weights have {len(state)} tensors of which none fits the model's {len(model_state)}")
    model.load_state_dict(matching, strict=False)
    return len(matching)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a saved state.

    Raises:
        ValueError: names or shapes differ from the model's.
    """
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the model: {str(error).splitlines()[0]}") from None


def autocast(device: str, enabled: bool) -> torch.autocast:
    """Mixed precision on CUDA, full precision elsewhere."""
    on_cuda = device.startswith("cuda")
    return torch.autocast("cuda" if on_cuda else "cpu", dtype=torch.bfloat16, enabled=enabled and on_cuda)
