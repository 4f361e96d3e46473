"""A timm ``features_only`` model as a Detectron2 backbone, with a feature pyramid on top."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

_FPN_STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """Feature maps of strides 4, 8, 16 and 32, named ``stride4`` to ``stride32``.

    Channels and strides come from timm's ``feature_info``, never from a table. Batch norm is frozen by timm's
    own helper: Detectron2's conversion drops the activation timm fuses into it, and training diverges.
    """

    def __init__(self, name: str, trainable_stages: int) -> None:
        """Build with random weights.

        Args:
            name: a timm model that supports ``features_only``.
            trainable_stages: stages that stay trainable, counted from the output; 0 freezes all. A stage is a
                block container's block, or a top-level module with parameters (of ResNet ``layer1``, of most
                models the stem).

        Raises:
            ValueError: the model is unknown to timm or lacks one of the four strides.
        """
        super().__init__()
        if name not in timm.list_models(name):
            raise ValueError(f"backbone is {name!r}, expected a model that timm {timm.__version__} knows")
        self.body = timm.create_model(name, pretrained=False, features_only=True)
        info: Any = self.body.feature_info
        self._stride_names = {reduction: f"stride{reduction}" for reduction in info.reduction()}
        missing = [stride for stride in _FPN_STRIDES if stride not in self._stride_names]
        if missing:
            raise ValueError(f"backbone {name!r} has strides {info.reduction()}, expected {_FPN_STRIDES}")
        self._out_features = [f"stride{stride}" for stride in _FPN_STRIDES]
        self._out_feature_channels = dict(zip(self._stride_names.values(), info.channels(), strict=True))
        self._out_feature_strides = {feature: stride for stride, feature in self._stride_names.items()}
        self._freeze(trainable_stages)

    def _freeze(self, trainable_stages: int) -> None:
        freeze_batch_norm_2d(self.body)  # type: ignore[no-untyped-call]
        stages = self._stages()
        # Everything before the first trainable stage is frozen: gradients through frozen stages to a trainable
        # stem would cost more than the trainable stages themselves.
        for stage in stages[: max(len(stages) - trainable_stages, 0)]:
            stage.requires_grad_(False)

    def _stages(self) -> list[nn.Module]:
        """The modules with parameters in the order of the forward pass; a container of blocks counts by block."""
        feature_names = self.body.feature_info.module_name()  # type: ignore[operator, union-attr]
        modules: list[nn.Module] = []
        for name, child in self.body.named_children():
            holds_features = any(feature.startswith(f"{name}.") for feature in feature_names)
            modules += list(child.children()) if holds_features else [child]
        return [module for module in modules if any(True for _ in module.parameters())]

    def forward(self, image_NCHW: Tensor) -> dict[str, Tensor]:
        """Return the feature maps by name, (N, C, H/stride, W/stride) each."""
        features = dict(zip(self._stride_names.values(), self.body(image_NCHW), strict=True))
        return {name: features[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """The multiple of pixels that images are padded to."""
        return max(_FPN_STRIDES)


def load_body_weights(backbone: TimmBackbone, state: Mapping[str, Tensor]) -> None:
    """Copy a classifier's weights into the body; its head is left out.

    Names are tried first. The packaged EfficientNet-Lite0 file carries other names for the same tensors, so
    tensors are else matched in order, and only if every shape agrees.

    Raises:
        ValueError: the file fits neither by name nor in order.
    """
    model_state = backbone.body.state_dict()
    if all(name in state and state[name].shape == tensor.shape for name, tensor in model_state.items()):
        backbone.body.load_state_dict({name: state[name] for name in model_state})
        return
    tensors = [tensor for tensor in state.values() if tensor.ndim > 0]
    matches = list(zip(model_state.items(), tensors, strict=False))
    if len(tensors) < len(model_state) or any(tensor.shape != other.shape for (_, tensor), other in matches):
        raise ValueError(f"weights have {len(tensors)} tensors that do not fit the backbone's {len(model_state)}")
    with torch.no_grad():
        for (_, tensor), other in matches:
            tensor.copy_(other)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the FPN P2 to P6 on the timm model that ``cfg.MODEL.TIMM`` names."""
    del input_shape  # timm models take three channels
    body = TimmBackbone(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.TRAINABLE_STAGES)
    return FPN(
        bottom_up=body,
        in_features=list(body.output_shape()),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
