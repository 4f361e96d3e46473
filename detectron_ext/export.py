"""A trained detector as a graph without Python: one image in, its detections out, for ONNX.

The graph is traced with one image. What depends on the image's size is computed inside the graph, so that images of any
size may follow; what the size of an image does not change, such as how a convolution of stride 2 pads, is fixed.

Shape shorthand: H, W pixels of the resized image; N detections, R proposals, K foreground classes; F features of the
box head, D dimensions of a region feature.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from detectron_ext.backbone import FoldedConv2d
from detectron_ext.embeddings import describe_image_regions, described_stages, embed_images, projection, recorded_stages
from detectron_ext.meta_arch import PerImageRCNN

INPUT_NAME = "image"
OUTPUT_NAMES = ("boxes_xyxy", "scores", "class_ids", "class_probs")
DESCRIPTION_NAMES = ("embedding", "stability", "region_features")
"""Further outputs of a graph that describes what it sees, as a teacher does for the pool."""
OPSET = 17
"""ONNX operators that the graph may use; onnxruntime from 1.12 and OpenVINO from 2022.3 have them."""
_TRACED_SIZE_PX = (160, 224)


class SingleImageDetector(nn.Module):
    """The detector of one resized image, without the containers of Detectron2 that a trace cannot follow."""

    def __init__(self, model: PerImageRCNN, *, describes: bool = False) -> None:
        """Copy ``model``, which stays as it is; the copy has constant kernels.

        Args:
            model: a detector.
            describes: whether ``DESCRIPTION_NAMES`` follow ``OUTPUT_NAMES``.
        """
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        _fix_kernels(self.model.backbone)
        self.embedding_projection = _EmbeddingProjection(self.model.backbone.bottom_up) if describes else None
        num_features = self.model.roi_heads.box_head.output_shape.channels
        self.region_projection = _RegionProjection(num_features) if describes else None

    def forward(self, image_HW3: Tensor) -> tuple[Tensor, ...]:
        """Detect objects, by descending score.

        Args:
            image_HW3: RGB uint8, resized for the model.

        Returns:
            Boxes (N, 4) in pixels of the given image, scores (N,), class ids (N,), and class posteriors (N, K+1) with
            background last; where it describes, the image's embedding (``EMBEDDING_DIM``,), and stability (N,) and
            features (N, D) of the detected regions.
        """
        model = self.model
        size_px = image_HW3.shape[0], image_HW3.shape[1]
        with recorded_stages(model.backbone.bottom_up) as stages:
            features = model.backbone(self._normalize(image_HW3))
        proposals_R4 = self._propose(features, size_px)
        predictor = model.roi_heads.box_predictor
        logits_RK, deltas = predictor(self._box_features(features, proposals_R4))
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals_R4)
        found, _ = predictor.keep_best(boxes, logits_RK.softmax(dim=1), size_px)
        detections = found.pred_boxes.tensor, found.scores, found.pred_classes, found.class_probs
        if self.region_projection is None or self.embedding_projection is None:
            return detections
        features_NF = self._box_features(features, found.pred_boxes.tensor)
        _, deltas = predictor(features_NF)
        refined = predictor.box2box_transform.apply_deltas(deltas, found.pred_boxes.tensor)
        self.region_projection(found, features_NF, predictor.select_class_rows(refined, found.pred_classes))
        return *detections, self.embedding_projection(stages), found.stability, found.region_features

    def _box_features(self, features: dict[str, Tensor], boxes_N4: Tensor) -> Tensor:
        """Return the features (N, F) of the box head, pooled from boxes."""
        roi_heads = self.model.roi_heads
        pooled = roi_heads.box_pooler([features[name] for name in roi_heads.box_in_features], [Boxes(boxes_N4)])
        found: Tensor = roi_heads.box_head(pooled)
        return found

    def _normalize(self, image_HW3: Tensor) -> Tensor:
        """Normalize and pad as ``PerImageRCNN.preprocess_image``, (1, 3, H', W')."""
        model = self.model
        image = image_HW3.permute(2, 0, 1).float()
        if model.input_format == "BGR":
            image = image.flip(0)
        image = (image - model.pixel_mean) / model.pixel_std
        stride = max(model.backbone.size_divisibility, 1)
        height, width = image_HW3.shape[0], image_HW3.shape[1]
        # Of positive numbers, because ONNX divides integers toward 0.
        below, right = ((side + stride - 1) // stride * stride - side for side in (height, width))
        return F.pad(image, [0, right, 0, below])[None]

    def _propose(self, features: dict[str, Tensor], size_px: tuple[int, int]) -> Tensor:
        """Return the proposals (R, 4) of the region proposal network."""
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        logits, deltas = rpn.predict(maps)
        [proposals] = rpn.predict_proposals(rpn.anchor_generator(maps), logits, deltas, [size_px])
        boxes: Tensor = proposals.proposal_boxes.tensor
        return boxes


class _EmbeddingProjection(nn.Module):
    """``embed_images`` with constant matrices; a module, so that the graph's nodes carry its name: int8 skips them."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        channels = [stage.channels for stage in described_stages(list(body.output_shape().values()))]
        self._matrices = {number: projection(number) for number in channels}

    def forward(self, stages: dict[str, Tensor]) -> Tensor:
        return embed_images(stages, self._matrices.__getitem__)[0]


class _RegionProjection(nn.Module):
    """``describe_regions`` of one image with a constant matrix; a module for the same reason."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self._matrix_FD = projection(num_features)

    def forward(self, found: Instances, features_NF: Tensor, refined_N4: Tensor) -> None:
        describe_image_regions(found, features_NF @ self._matrix_FD, refined_N4)


class FixedConv2d(nn.Conv2d):
    """A convolution with the frozen norm after it inside the kernel, padded as for maps with even sides."""

    def __init__(self, conv: FoldedConv2d) -> None:
        """Compute kernel and bias once; ``conv`` computes them in every pass."""
        [norm] = conv._scale_and_shift
        scale_C, shift_C = norm.scale_and_shift()
        out_channels, in_channels, height, width = conv.weight.shape
        padding: Any = 0 if conv.pads_same else conv.padding
        stride: Any = conv.stride
        dilation: Any = conv.dilation
        super().__init__(
            in_channels * conv.groups, out_channels, (height, width), stride, padding, dilation, conv.groups
        )
        self.weight = nn.Parameter(conv.weight.detach() * scale_C[:, None, None, None])
        bias = 0.0 if conv.bias is None else conv.bias.detach() * scale_C
        self.bias = nn.Parameter(shift_C + bias)
        self.activation = conv.activation
        self._sides = _same_padding(conv) if conv.pads_same else None

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        padded = input if self._sides is None else F.pad(input, self._sides)
        output = super().forward(padded)
        return output if self.activation is None else self.activation(output)


def _same_padding(conv: FoldedConv2d) -> list[int]:
    """Pixels left, right, above, below by TensorFlow's SAME, where every side is a multiple of the stride."""
    sides: list[int] = []
    for kernel, stride, dilation in zip(
        reversed(conv.weight.shape[-2:]), reversed(conv.stride), reversed(conv.dilation), strict=True
    ):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        sides += [total // 2, total - total // 2]
    return sides


def _fix_kernels(module: nn.Module) -> None:
    for name, child in list(module.named_modules()):
        if isinstance(child, FoldedConv2d):
            module.set_submodule(name, FixedConv2d(child))


def write_onnx(
    model: PerImageRCNN,
    path: Path,
    traced_size_px: tuple[int, int] = _TRACED_SIZE_PX,
    *,
    describes: bool = False,
) -> None:
    """Write ``model`` as an ONNX file with the input ``INPUT_NAME`` and the outputs ``OUTPUT_NAMES``.

    Args:
        model: a detector; it is not changed.
        path: the file to write.
        describes: whether ``DESCRIPTION_NAMES`` follow, for a second pass of the box head over the detections.
        traced_size_px: height and width of the image that the trace follows; any image with objects in it will do.
    """
    detector = SingleImageDetector(model, describes=describes)
    names = [*OUTPUT_NAMES, *(DESCRIPTION_NAMES if describes else ())]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (*traced_size_px, 3), generator=generator, dtype=torch.uint8)
    axes = {INPUT_NAME: {0: "height", 1: "width"}}
    axes |= {name: {0: "detections"} for name in names if name != "embedding"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer names every Python number; those of Detectron2 do not vary
        torch.onnx.export(
            detector, (image,), str(path), input_names=[INPUT_NAME], output_names=names,
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
