"""Write the network of an export: ONNX or OpenVINO, in fp32 or in int8 calibrated on images."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tasks
from detectron_ext.export import write_onnx
from detectron_ext.meta_arch import PerImageRCNN
from tasks.export.packages import Format
from tasks.export.quantize import IMAGES, NETWORK, QUANTIZED
from tasks.export.runtime import openvino_core
from tasks.runtime.errors import UserError

NETWORK_FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("network.onnx",),
    "openvino": ("network.xml", "network.bin"),
}
"""Files of the network by format; the first is the one to load."""


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
        path = Path(scratch) / NETWORK
        write_onnx(model, path)
        if images is not None:
            path = quantize_network(path, images)
        if export_format == "onnx":
            shutil.copyfile(path, folder / NETWORK_FILES["onnx"][0])
        else:
            _convert_to_openvino(path, folder / NETWORK_FILES["openvino"][0])


def quantize_network(network: Path, images: Sequence[NDArray[np.uint8]]) -> Path:
    """Round the network to 8 bits in a process of its own, and return the new file beside it.

    Args:
        network: ``NETWORK`` of a folder that may be written to.
        images: RGB (H, W, 3), resized for the model, for the ranges.

    Raises:
        UserError: the process failed; carries its last line.
    """
    folder = network.parent
    np.savez(folder / IMAGES, *images)
    package_parent = str(Path(tasks.__file__).parents[1])
    python_path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "tasks.export.quantize", str(folder)],
        env={**os.environ, "PYTHONPATH": python_path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
        problem = f"rounding to int8 ended with code {done.returncode} ({last.strip()}), expected 0"
        raise UserError("tasks.export.quantize", problem)
    return folder / QUANTIZED


def _convert_to_openvino(network: Path, target: Path) -> None:
    import openvino

    # Not convert_model, which reports its use to the makers.
    openvino.save_model(openvino_core().read_model(network), target, compress_to_fp16=False)
