"""Round a network to 8 bits: ``python -m tasks.export.quantize FOLDER``.

Reads ``network.onnx`` and ``images.npz`` (RGB (H, W, 3), resized for the model) of the folder and writes ``int8.onnx``.
A process of its own, so that its memory goes back when it ends.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NETWORK, IMAGES, QUANTIZED = "network.onnx", "images.npz", "int8.onnx"
_INPUT_NAME = "image"
"""That of ``detectron_ext.export``, which would bring torch into this process."""
_OPERATORS = ("Conv", "Gemm", "MatMul")
_EXACT_PARTS = (
    *("anchor_deltas", "objectness_logits", "bbox_pred", "cls_score"),
    *("embedding_projection", "region_projection"),
)
"""Layers of scores and offsets of boxes by Detectron2's names, and what describes images and regions."""


def quantize(folder: Path) -> None:
    """Round convolutions and matrix products to 8 bits, kernels by channel, maps by their range over the images.

    The first convolution, depthwise convolutions and the layers that give scores and offsets of boxes stay in 32 bits,
    and so does everything between the layers (docs/decisions.md has the measurements).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with np.load(folder / IMAGES) as stored:
        images = [stored[name] for name in stored.files]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {_INPUT_NAME: image}

    logging.getLogger().setLevel(logging.ERROR)  # it advises to do what the line below does
    folded = folder / "folded.onnx"
    quant_pre_process(str(folder / NETWORK), str(folded), skip_symbolic_shape=True)  # folds constants and norms
    quantize_static(
        str(folded), str(folder / QUANTIZED), Reader(), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, nodes_to_exclude=_exact_layers(folded),
    )  # fmt: skip


def _exact_layers(network: Path) -> list[str]:
    """Name the layers that lose most in 8 bits: the first, depthwise ones, and those of scores and offsets of boxes."""
    import onnx

    nodes = [node for node in onnx.load(network).graph.node if node.op_type in _OPERATORS]
    first = next(node.name for node in nodes if node.op_type == "Conv")
    outputs = [node.name for node in nodes if any(f"/{part}" in node.name for part in _EXACT_PARTS)]
    depthwise = [node.name for node in nodes if any(item.name == "group" and item.i > 1 for item in node.attribute)]
    return [first, *depthwise, *outputs]


if __name__ == "__main__":
    quantize(Path(sys.argv[1]))
