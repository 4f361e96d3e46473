"""Structured pruning: channels between two layers are removed, and both layers become smaller.

Which channels may go is read off a trace. A layer's output channels are hidden where everything that reads them passes
each channel on by itself (a frozen norm, an activation, a depthwise convolution), until convolutions or linear layers
take them in. Then the removal changes the reading layers' sums by the removed terms and nothing else. Channels that are
added to others, that leave the traced part, or that meet any other operation, stay: the feature pyramid, the outputs of
residual blocks, gated channels.

Shape shorthand: C channels of one layer's output.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import Conv2d as Detectron2Conv2d
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detectron_ext.backbone import FROZEN_NORMS, FoldedConv2d, FoldedNorm
from detectron_ext.meta_arch import PerImageRCNN

CRITERION = "first-order Taylor, Molchanov et al. 2019"
_CHANNEL_MULTIPLE = 8
"""Layers keep a multiple of this many channels: processors compute them in vectors of 4 to 16."""
_CONVS = (nn.Conv2d, Conv2dSame, Detectron2Conv2d, FoldedConv2d)
_NORMS = (FoldedNorm, *FROZEN_NORMS)
_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Sigmoid, nn.Tanh,
    nn.Identity, nn.Dropout,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.silu, F.gelu, F.hardswish, F.leaky_relu, torch.relu, torch.relu_, torch.sigmoid,
}  # fmt: skip
_VERIFIED_SIZE_PX = (96, 128)
_VERIFIED_REGIONS = 8


@dataclass(frozen=True)
class HiddenChannels:
    """The output channels of one layer, and all that they touch; layers by their names in the detector."""

    producer: str
    num_channels: int
    depthwise: tuple[str, ...]
    """Convolutions that pass each channel on by itself."""
    norms: tuple[str, ...]
    """Frozen norms on the way."""
    readers: tuple[str, ...]
    """Layers that sum over the channels."""


@dataclass(frozen=True)
class PruningReport:
    """What a removal took away; counts before and after."""

    fraction: float
    criterion: str
    layers_pruned: int
    layers_left: int
    """Convolutions and linear layers that keep all their output channels, most because others depend on them."""
    channels_before: int
    """Of the pruned layers."""
    channels_after: int
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    """Of one image of the given size: backbone, proposal network, and the box head on the most regions it is given."""
    multiply_adds_after: int


def prune(
    model: PerImageRCNN,
    fraction: float,
    batches: Sequence[list[dict[str, Any]]],
    size_px: tuple[int, int],
    seed: int,
) -> tuple[PerImageRCNN, PruningReport]:
    """Return a copy without the least important channels, ready to train, and what became of it.

    Args:
        model: a trained detector; it is not changed.
        fraction: of the channels of each layer that may lose some, in (0, 1); what is kept is rounded to eights.
        batches: labeled training inputs that the importance is measured on.
        size_px: height and width of the image whose multiply-adds are counted.
        seed: of the anchors and regions that the losses are measured on.

    Raises:
        ValueError: no layer may lose channels, or the smaller detector computes something else.
    """
    groups = find_hidden_channels(model)
    importance = rank_channels(model, groups, batches, seed)
    kept = channels_to_keep(importance, fraction)
    if not kept:
        raise ValueError(f"layers that can lose {fraction:g} of their channels are 0, expected at least 1")
    pruned = copy.deepcopy(model)
    remove_channels(pruned, groups, kept)
    _require_same_outputs(model, pruned, groups, kept)
    pruned.requires_grad_(True)  # frozen stages lost channels too, and have to make up for it
    counted = [group for group in groups if group.producer in kept]
    num_layers = sum(isinstance(module, (*_CONVS, nn.Linear)) for module in model.modules())
    report = PruningReport(
        fraction=fraction,
        criterion=CRITERION,
        layers_pruned=len(kept),
        layers_left=num_layers - len(kept) - sum(len(group.depthwise) for group in counted),
        channels_before=sum(group.num_channels for group in counted),
        channels_after=sum(len(kept[group.producer]) for group in counted),
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(pruned),
        multiply_adds_before=count_multiply_adds(model, size_px),
        multiply_adds_after=count_multiply_adds(pruned, size_px),
    )
    return pruned, report


def find_hidden_channels(model: PerImageRCNN) -> list[HiddenChannels]:
    """Return the layers whose output channels nothing but their readers depends on.

    The heads are traced as the detector runs them: the proposal network's on one level, since all share its layers,
    and the box head with the predictor's two layers on top.
    """
    name_of = {id(module): name for name, module in model.named_modules()}
    parts = (model.backbone.bottom_up, _OneLevel(model.proposal_generator.rpn_head), _RegionLayers(model.roi_heads))
    return [
        group
        for part in parts
        for traced, graph in _traced(part)
        for group in _groups(graph, dict(traced.named_modules()), name_of)
    ]


class _OneLevel(nn.Module):
    """The head of the proposal network on one level of the pyramid."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features_NCHW: Tensor) -> Any:
        return self.head([features_NCHW])


class _RegionLayers(nn.Module):
    """The box head and the two layers that read it."""

    def __init__(self, roi_heads: Any) -> None:
        super().__init__()
        predictor = roi_heads.box_predictor
        self.box_head, self.cls_score, self.bbox_pred = roi_heads.box_head, predictor.cls_score, predictor.bbox_pred

    def forward(self, pooled_RCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_RF = self.box_head(pooled_RCHW)
        return self.cls_score(features_RF), self.bbox_pred(features_RF)


class _Tracer(fx.Tracer):
    """Layers, norms and activations are single nodes of the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return isinstance(m, (nn.Conv2d, FoldedConv2d, *_NORMS)) or next(m.children(), None) is None


def _traced(module: nn.Module) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """Trace a module; where its code cannot be traced, its children, each by itself."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # of any kind: the module's own code ran with symbols in place of tensors
        for child in module.children():
            yield from _traced(child)
        return
    yield module, graph


def _groups(graph: fx.Graph, modules: Mapping[str, nn.Module], name_of: Mapping[int, str]) -> Iterator[HiddenChannels]:
    # A layer that is called twice, or whose weight is read by other code, would have to fit both places.
    used = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    used += [str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"]
    for node in graph.nodes:
        if node.op != "call_module" or not _sums_over_channels(modules[node.target]):
            continue
        touched = _follow(node, modules)
        if touched is None or any(used.count(str(other.target)) > 1 for other in touched):
            continue
        producer, *others = [modules[str(other.target)] for other in touched]
        readers = [module for module in others if _sums_over_channels(module)]
        depthwise = [module for module in others if _is_depthwise(module)]
        norms = [module for module in others if isinstance(module, _NORMS)]
        norms += [norm for conv in (producer, *depthwise) if (norm := _own_norm(conv)) is not None]
        names = (tuple(sorted({name_of[id(module)] for module in kind})) for kind in (depthwise, norms, readers))
        if readers:
            yield HiddenChannels(name_of[id(producer)], len(producer.weight), *names)  # type: ignore[arg-type]


def _follow(producer: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node] | None:
    """Return a layer's node and those that its channels reach; None where one of these mixes channels otherwise."""
    is_linear = isinstance(modules[str(producer.target)], nn.Linear)
    if not _is_elementwise(getattr(modules[str(producer.target)], "activation", None)):
        return None
    touched, pending = [producer], list(producer.users)
    while pending:
        node = pending.pop()
        if len(node.all_input_nodes) != 1:
            return None
        if node.op == "call_function" and node.target in _ELEMENTWISE_FUNCTIONS:
            pending += node.users
            continue
        if node.op != "call_module":
            return None
        module = modules[str(node.target)]
        if _sums_over_channels(module):
            if isinstance(module, nn.Linear) != is_linear:  # a linear layer sums over a map's columns, not its channels
                return None
        elif _passes_each_channel(module, is_linear):
            pending += node.users
        else:
            return None
        if isinstance(module, (*_CONVS, *_NORMS, nn.Linear)):
            touched.append(node)
    return touched


def _sums_over_channels(module: nn.Module) -> bool:
    """Whether it is a layer of which each output depends on all inputs by a sum; subclasses may do more."""
    if type(module) is nn.Linear:
        return _has_no_hooks(module)
    return _is_plain_conv(module) and _groups_of(module) == 1


def _is_depthwise(module: nn.Module) -> bool:
    if not _is_plain_conv(module):
        return False
    weight: Any = module.weight
    return _groups_of(module) == len(weight) > 1 == weight.shape[1]


def _groups_of(conv: Any) -> int:
    return int(conv.groups)


def _is_plain_conv(module: nn.Module) -> bool:
    norm = getattr(module, "norm", None)
    return type(module) in _CONVS and (norm is None or _is_plain_norm(norm)) and _has_no_hooks(module)


def _is_plain_norm(module: nn.Module) -> bool:
    if not isinstance(module, _NORMS):
        return False
    return all(_is_elementwise(getattr(module, name, None)) for name in ("drop", "act"))


def _passes_each_channel(module: nn.Module, is_linear: bool) -> bool:
    """Whether each channel of its output depends on the same channel of its input alone."""
    if _is_elementwise(module):
        return True
    if is_linear:
        return False
    is_depthwise = _is_depthwise(module) and _is_elementwise(getattr(module, "activation", None))
    return is_depthwise or _is_plain_norm(module)


def _is_elementwise(function: object) -> bool:
    """Whether it is an activation without parameters, or none."""
    if isinstance(function, nn.Module):
        return type(function) in _ELEMENTWISE_MODULES
    return function is None or function in _ELEMENTWISE_FUNCTIONS


def _has_no_hooks(module: nn.Module) -> bool:
    return not module._forward_hooks and not module._forward_pre_hooks


def _own_norm(conv: Any) -> nn.Module | None:
    """Return the norm that a convolution applies itself, or has taken over."""
    if isinstance(conv, FoldedConv2d):
        return conv._scale_and_shift[0]
    norm = getattr(conv, "norm", None)
    return norm if isinstance(norm, nn.Module) else None


def rank_channels(
    model: PerImageRCNN, groups: Sequence[HiddenChannels], batches: Sequence[list[dict[str, Any]]], seed: int
) -> dict[str, Tensor]:
    """Return the importance of each hidden channel by the name of its layer, (C,) each, >= 0.

    Removing channel c takes the terms ``w z_c`` out of what reads it. To first order that changes the loss by
    ``sum w dL/dw`` over the weights w of c in all readers; the importance is its square, averaged over the batches:
    the first-order criterion of Molchanov et al. 2019 (arXiv:1906.10771) for a gate on each channel.

    Args:
        model: a trained detector; it is not changed.
        groups: of ``find_hidden_channels``.
        batches: labeled training inputs, at least one.
        seed: of the anchors and regions that the losses are measured on.
    """
    probe = copy.deepcopy(model).train().requires_grad_(True)
    squares = {group.producer: torch.zeros(group.num_channels) for group in groups}
    for number, inputs in enumerate(batches):
        torch.manual_seed(seed * 1_000_003 + number)
        probe.zero_grad(set_to_none=True)
        with EventStorage(number):
            probe(inputs).total().mean().backward()
        for group in groups:
            readers: list[Any] = [probe.get_submodule(name).weight for name in group.readers]
            changes = [_sum_by_input(weight.detach() * weight.grad) for weight in readers if weight.grad is not None]
            if changes:  # without regions the box head has no gradient
                squares[group.producer] += torch.stack(changes).sum(dim=0).square().cpu()
    return {name: total_C / len(batches) for name, total_C in squares.items()}


def _sum_by_input(values: Tensor) -> Tensor:
    """Sum the values of a kernel (C', C, ...) by input channel, (C,)."""
    return values.transpose(0, 1).flatten(1).sum(dim=1)


def channels_to_keep(importance: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Return the indices, ascending, of the channels that stay, by the name of each layer that loses some.

    Args:
        importance: (C,) by the name of the layer.
        fraction: of a layer's channels to remove; what stays is rounded to a multiple of eight, and at least eight.
    """
    kept = {}
    for name, importance_C in importance.items():
        wanted = len(importance_C) * (1 - fraction) / _CHANNEL_MULTIPLE
        num_kept = max(int(wanted + 0.5), 1) * _CHANNEL_MULTIPLE
        if num_kept < len(importance_C):
            order = importance_C.argsort(descending=True, stable=True)
            kept[name] = order[:num_kept].sort().values
    return kept


def remove_channels(model: nn.Module, groups: Sequence[HiddenChannels], kept: Mapping[str, Tensor]) -> None:
    """Make the layers of ``model`` smaller, in place; layers that ``kept`` does not name stay as they are."""
    for group in groups:
        if group.producer not in kept:
            continue
        index = kept[group.producer].to(next(model.parameters()).device)
        _keep_outputs(model.get_submodule(group.producer), index)
        for name in group.depthwise:
            conv: Any = model.get_submodule(name)
            _keep_outputs(conv, index)
            conv.groups = len(index)
            _set_size(conv, "in_channels", len(index))
        for name in group.norms:
            norm: Any = model.get_submodule(name)
            for tensor_name, tensor in [*norm.named_buffers(recurse=False)]:
                if tensor.ndim == 1:
                    setattr(norm, tensor_name, tensor[index].clone())
            _set_size(norm, "num_features", len(index))
        for name in group.readers:
            reader: Any = model.get_submodule(name)
            reader.weight = _selected(reader.weight, 1, index)
            _set_size(reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels", len(index))


def _keep_outputs(layer: Any, index: Tensor) -> None:
    layer.weight = _selected(layer.weight, 0, index)
    if layer.bias is not None:
        layer.bias = _selected(layer.bias, 0, index)
    _set_size(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(index))


def _selected(parameter: nn.Parameter, dim: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad)


def _set_size(module: Any, name: str, size: int) -> None:
    if hasattr(module, name):  # folded convolutions and norms have none of their own
        setattr(module, name, size)


def silence_channels(model: nn.Module, groups: Sequence[HiddenChannels], kept: Mapping[str, Tensor]) -> None:
    """Set to 0, in place, what readers take from removed channels; then it computes what the smaller model does."""
    for group in groups:
        if group.producer not in kept:
            continue
        for name in group.readers:
            weight: Any = model.get_submodule(name).weight
            is_removed_C = torch.ones(group.num_channels, dtype=torch.bool, device=weight.device)
            is_removed_C[kept[group.producer].to(weight.device)] = False
            with torch.no_grad():
                weight[:, is_removed_C] = 0


def _require_same_outputs(
    model: PerImageRCNN, pruned: PerImageRCNN, groups: Sequence[HiddenChannels], kept: Mapping[str, Tensor]
) -> None:
    """Compare with the whole model whose removed channels are silent: a trace may not have seen all of its code."""
    silenced = copy.deepcopy(model)
    silence_channels(silenced, groups, kept)
    for own, expected in zip(layer_outputs(pruned), layer_outputs(silenced), strict=True):
        scale = max(float(expected.abs().max()), 1.0)
        if not torch.allclose(own, expected, rtol=0, atol=1e-4 * scale):
            difference = float((own - expected).abs().max())
            raise ValueError(f"outputs without the channels differ by {difference:.3g}, expected at most rounding")


@torch.no_grad()
def layer_outputs(
    model: PerImageRCNN, size_px: tuple[int, int] = _VERIFIED_SIZE_PX, num_regions: int = _VERIFIED_REGIONS
) -> list[Tensor]:
    """Return what pyramid, proposal network and predictor give for one random image and regions of the whole image."""
    stride = max(model.backbone.size_divisibility, 1)
    height, width = (-(-side // stride) * stride for side in size_px)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, height, width, generator=generator).to(model.device)
    was_training = model.training
    model.eval()
    features = model.backbone(image)
    rpn, roi_heads = model.proposal_generator, model.roi_heads
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    boxes = Boxes(torch.tensor([[0.0, 0.0, width, height]], device=model.device).repeat(num_regions, 1))
    pooled = roi_heads.box_pooler([features[name] for name in roi_heads.box_in_features], [boxes])
    predicted = roi_heads.box_predictor(roi_heads.box_head(pooled))
    model.train(was_training)
    return [*features.values(), *logits, *deltas, *predicted]


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters and of the values of frozen norms."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def count_multiply_adds(model: PerImageRCNN, size_px: tuple[int, int]) -> int:
    """Return the multiply-adds of one image of height and width ``size_px`` with as many regions as may be proposed."""
    counter = FlopCounterMode(display=False)
    with counter:
        layer_outputs(model, size_px, model.proposal_generator.post_nms_topk[False])
    return counter.get_total_flops() // 2
