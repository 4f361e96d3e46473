"""A timm ``features_only`` model as a Detectron2 backbone, with a feature pyramid on top; frozen norms of any backbone.

Frozen batch norms become part of the convolutions before them: the same function with fewer passes over memory. A
frozen norm is ``x * scale + shift`` per channel. After a convolution it is the same convolution with the kernel
``weight * scale`` and the bias ``shift``. Every forward pass scales the kernel anew, which costs little; so parameters,
gradients and the names in a checkpoint stay as they were. Results differ by rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d as Detectron2Conv2d
from detectron2.layers import FrozenBatchNorm2d as Detectron2FrozenNorm
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.layers.padding import get_same_padding, pad_same
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

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


FROZEN_NORMS = (FrozenBatchNormAct2d, FrozenBatchNorm2d, Detectron2FrozenNorm)


def fold_frozen_norms(body: nn.Module) -> int:
    """Fold every frozen norm of ``body`` that directly follows a convolution into it.

    A body whose forward pass cannot be traced keeps its norms, and gives the same results more slowly.

    Returns:
        How many norms were folded.
    """
    pairs = [*_pairs_in_wrappers(body), *_traced_pairs(body)]
    for conv_name, norm_name in pairs:
        conv: Any = body.get_submodule(conv_name)
        norm = FoldedNorm(body.get_submodule(norm_name))
        body.set_submodule(conv_name, FoldedConv2d(conv, norm, getattr(conv, "activation", None)))
        body.set_submodule(norm_name, norm)
    return len(pairs)


class FoldedConv2d(nn.Module):
    """A convolution and the frozen norm after it, with the convolution's parameters under their names."""

    norm: nn.Module | None
    """Where the convolution held its norm itself, as Detectron2's do."""

    def __init__(self, conv: nn.Conv2d, norm: "FoldedNorm", activation: Callable[[Tensor], Tensor] | None) -> None:
        """Take over the parameters of ``conv``, which does no more than to pad and to convolve."""
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.norm, self.activation = norm if isinstance(conv, Detectron2Conv2d) else None, activation
        self.pads_same = isinstance(conv, Conv2dSame)
        self._scale_and_shift = (norm,)  # in a tuple: as a module it would enter the state dict a second time

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve and normalize."""
        [norm] = self._scale_and_shift
        scale_C, shift_C = norm.scale_and_shift()
        kernel = self.weight * scale_C[:, None, None, None]
        if self.bias is not None:
            shift_C = shift_C + self.bias * scale_C
        padding: Any = self.padding
        if self.pads_same:
            x_NCHW, kernel, padding = self._pad_same(x_NCHW, kernel)
        x_NCHW = F.conv2d(x_NCHW, kernel, shift_C, self.stride, padding, self.dilation, self.groups)
        return x_NCHW if self.activation is None else self.activation(x_NCHW)

    def _pad_same(self, x_NCHW: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, int]:
        """Pad as TensorFlow's SAME does: where the sum is odd, one pixel more below and to the right.

        A copy of the map is avoided where one row and column of zeros, put before the kernel, make the padding even.
        Only of a frozen depthwise convolution: the gradient and the channel sums of a larger kernel cost more.
        """
        totals = {
            get_same_padding(*sides)
            for sides in zip(x_NCHW.shape[-2:], kernel.shape[-2:], self.stride, self.dilation, strict=True)
        }
        is_depthwise = self.groups == x_NCHW.shape[1] > 1 and self.dilation == (1, 1)
        if is_depthwise and not kernel.requires_grad and len(totals) == 1 and (total := totals.pop()) % 2 == 1:
            return x_NCHW, F.pad(kernel, (1, 0, 1, 0)), total // 2 + 1
        return pad_same(x_NCHW, list(kernel.shape[-2:]), list(self.stride), list(self.dilation)), kernel, 0


class FoldedNorm(nn.Module):
    """What is left of a frozen norm after its convolution took over scale and shift: buffers and activation."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any) -> None:
        """Take over the buffers of ``norm``, and of timm's its activation."""
        super().__init__()
        self.eps = norm.eps
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand of each channel, (C,) each."""
        scale_C = self.weight * (self.running_var + self.eps).rsqrt()
        return scale_C, self.bias - self.running_mean * scale_C

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the activation of a normalized map."""
        return self.act(self.drop(x_NCHW))


class _Tracer(fx.Tracer):
    """Convolutions and norms are single nodes of the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return isinstance(m, (nn.Conv2d, *FROZEN_NORMS)) or next(m.children(), None) is None


def _traced_pairs(body: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the frozen norms that alone read their output."""
    try:
        nodes = _Tracer().trace(body).nodes
    except Exception:  # of any kind: the body's own code ran with symbols in place of tensors
        return
    modules = dict(body.named_modules())
    for node in nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], FROZEN_NORMS):
            continue
        source = node.args[0]
        if source.op == "call_module" and len(source.users) == 1 and _is_foldable(modules[source.target]):
            yield source.target, node.target


def _pairs_in_wrappers(body: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of Detectron2's convolutions that hold their norm, and of these norms."""
    for name, module in body.named_modules():
        if type(module) is Detectron2Conv2d and isinstance(module.norm, FROZEN_NORMS):
            yield name, f"{name}.norm"


def _is_foldable(module: nn.Module) -> bool:
    """Whether its forward pass is one that ``FoldedConv2d`` repeats; subclasses may do more."""
    return type(module) in (nn.Conv2d, Conv2dSame) and not module._forward_hooks and not module._forward_pre_hooks
