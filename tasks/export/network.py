"""Write the network of an export: ONNX or OpenVINO, in fp32 or in int8 calibrated on images."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detectron_ext.export import INPUT_NAME, write_onnx
from detectron_ext.meta_arch import PerImageRCNN
from tasks.runtime.errors import UserError

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "int8"]
NETWORK_FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("network.onnx",),
    "openvino": ("network.xml", "network.bin"),
}
"""Files of the network by format; the first is the one to load."""
RUNTIME_PACKAGES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
_OUTPUT_LAYERS = ("anchor_deltas", "objectness_logits", "bbox_pred", "cls_score")
"""Detectron2's names."""
_QUANTIZED = ("Conv", "Gemm", "MatMul")


def require_packages(export_format: Format, precision: Precision) -> None:
    """Check that what an export needs is installed.

    Raises:
        UserError: it is not.
    """
    needed = ["onnxruntime"] if export_format == "onnx" else ["openvino"]
    needed += ["onnxruntime", "onnx"] if precision == "int8" else []
    for name in needed:
        try:
            __import__(name)
        except ImportError:
            fix = "Run: pip install 'gleaner[export]'"
            raise UserError("gleaner export", f"the package {name} is not installed", fix) from None


def write_network(
    model: PerImageRCNN, folder: Path, export_format: Format, images: Sequence[NDArray[np.uint8]] | None
) -> None:
    """Write ``NETWORK_FILES`` of a format.

    Args:
        model: a trained detector; it is not changed.
        folder: an existing folder.
        export_format: of the files.
        images: RGB (H, W, 3), resized for the model, for the ranges of int8; None: fp32.
    """
    with tempfile.TemporaryDirectory(prefix="gleaner-export-") as scratch:
        path = Path(scratch) / "network.onnx"
        write_onnx(model, path)
        if images is not None:
            path = _quantize(path, images)
        if export_format == "onnx":
            shutil.copyfile(path, folder / NETWORK_FILES["onnx"][0])
        else:
            _convert_to_openvino(path, folder / NETWORK_FILES["openvino"][0])


def _quantize(network: Path, images: Sequence[NDArray[np.uint8]]) -> Path:
    """Round convolutions and matrix products to 8 bits, kernels by channel, maps by their range over ``images``.

    The first convolution, depthwise convolutions and the layers that give scores and offsets of boxes stay in 32 bits,
    and so does everything between the layers (docs/decisions.md has the measurements).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT_NAME: image}

    folded, quantized = network.with_name("folded.onnx"), network.with_name("int8.onnx")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises to do what the line below does
    try:
        quant_pre_process(str(network), str(folded), skip_symbolic_shape=True)  # folds constants and norms
        quantize_static(
            str(folded), str(quantized), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(_QUANTIZED),
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=_exact_layers(folded),
        )  # fmt: skip
    finally:
        logger.setLevel(level)
    return quantized


def _exact_layers(network: Path) -> list[str]:
    """Name the layers that lose most in 8 bits: the first, depthwise ones, and those of scores and offsets of boxes."""
    import onnx

    nodes = [node for node in onnx.load(network).graph.node if node.op_type in _QUANTIZED]
    first = next(node.name for node in nodes if node.op_type == "Conv")
    outputs = [node.name for node in nodes if any(f"/{part}" in node.name for part in _OUTPUT_LAYERS)]
    depthwise = [node.name for node in nodes if any(item.name == "group" and item.i > 1 for item in node.attribute)]
    return [first, *depthwise, *outputs]


def _convert_to_openvino(network: Path, target: Path) -> None:
    import openvino

    # Not convert_model, which reports its use to the makers.
    openvino.save_model(openvino.Core().read_model(network), target, compress_to_fp16=False)
