"""The detector of stage infer as a program of ONNX Runtime or OpenVINO (docs/guides/export.md#backend).

Either loads one ONNX file. It is written once a run, beside the finished pieces, and is compared with torch on some
images.
"""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import tasks.export
from detectron_ext.augmentation import Pixels
from detectron_ext.compiled_detector import CompiledDetector
from detectron_ext.export import write_onnx
from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.export.calibration import calibration_inputs
from tasks.export.network import quantize_network
from tasks.export.packages import Format, installed_versions, needed_packages, require_packages
from tasks.export.quantize import NETWORK
from tasks.export.runtime import load_network
from tasks.model.detector import ImageReader, default_device, detect_all
from tasks.params import StageParams
from tasks.params.stages import InferParams
from tasks.runtime.errors import UserError
from tasks.storage import files

log = logging.getLogger(__name__)
COMPARED_IMAGES = 4
"""Images on which a new program is compared with torch, before it is rounded to int8."""
_MATCHED_IOU = 0.99
_MIN_MATCHED_FRAC = 0.9
_EXPORT_MODULES = ("calibration.py", "network.py", "packages.py", "quantize.py", "runtime.py")


def require_backend(params: InferParams) -> None:
    """Check that this machine can run the program.

    Raises:
        UserError: a package is missing, or there is a CUDA device.
    """
    require_packages(_format(params), params.backend_precision, where=f"params.yaml: infer.backend {params.backend}")
    _require_cpu(params)


def _format(params: InferParams) -> Format:
    assert params.backend != "torch", "torch needs no program"
    return params.backend


def _require_cpu(params: InferParams) -> None:
    if default_device() != "cpu":
        problem = f"infer.backend is {params.backend} on a machine with a CUDA device, expected torch"
        raise UserError("params.yaml", problem, "Set infer.backend to torch: the program would leave the GPU idle.")


def program_fingerprint(params: InferParams) -> str:
    """Return the digest of the software that decides what a program computes, beside that of the torch detector."""
    folder = Path(str(tasks.export.__file__)).parent
    packages = needed_packages(_format(params), params.backend_precision)
    return files.sha256_json(
        [[files.sha256_file(folder / name) for name in _EXPORT_MODULES], installed_versions(packages)]
    )


def write_program(
    params: StageParams, detector: PerImageRCNN, root: Path, images: pa.Table, calibration: pa.Table, target: Path
) -> None:
    """Write a detector as the ONNX file ``target``.

    Args:
        params: sections model, infer and train.
        detector: in eval mode, on the CPU.
        root: folder that image uris are relative to.
        images: with ``image_id`` and ``uri``; the program is compared with torch on the first of them.
        calibration: the same columns; images of people's labels for the ranges of int8.
        target: the file.

    Raises:
        UserError: the program finds other boxes than torch, int8 has no images, or a package or an image is missing.
    """
    infer = params.infer
    with tempfile.TemporaryDirectory(prefix="gleaner-program-") as scratch:
        network = Path(scratch) / NETWORK
        _write_onnx(detector, network, infer)
        compared = _read(root, images.slice(0, COMPARED_IMAGES))
        _require_same_boxes(detector, load_program(network, infer), compared, params)
        if infer.backend_precision == "int8":
            inputs = calibration_inputs(
                root, calibration, params.model, infer.backend_calibration_images,
                without_int8="set infer.backend_precision to fp32",
            )  # fmt: skip
            network = quantize_network(network, inputs)
        files.write_bytes(target, network.read_bytes())


def load_program(network: Path, params: InferParams) -> CompiledDetector:
    """Load a program, with as many threads as torch has here.

    Raises:
        UserError: there is a CUDA device.
    """
    _require_cpu(params)
    return CompiledDetector(load_network(network, params.backend, torch.get_num_threads()))


def _write_onnx(detector: PerImageRCNN, network: Path, params: InferParams) -> None:
    try:
        write_onnx(detector, network, describes=True)
    except (RuntimeError, ValueError, TypeError) as error:  # those of torch's exporter are RuntimeErrors
        message = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"infer.backend is {params.backend}, expected torch: ONNX cannot express the detector ({message})"
        raise UserError("params.yaml", problem, "Set infer.backend to torch.") from None


def _read(root: Path, images: pa.Table) -> list[Pixels]:
    rows = images.select(["image_id", "uri"]).to_pylist()
    read = ImageReader(root, rows)
    return [read(row["uri"]) for row in rows]


def _require_same_boxes(
    detector: PerImageRCNN, program: CompiledDetector, images: Sequence[Pixels], params: StageParams
) -> None:
    """Refuse a program that finds other boxes than torch.

    A trace may have fixed what it should not, for a backbone that nobody tried; such a program is wrong on every image.
    """
    results = detect_all(
        [detector, program], range(len(images)), images.__getitem__, params.model,
        batch_size=1, mixed_precision=False,
    )  # fmt: skip
    least = params.infer.score_threshold  # what is not stored may be a near tie
    matched_frac = _matched_frac((one.filter_by_score(least), other) for _, (one, other) in results)
    facts = f"{params.infer.backend} finds {matched_frac:.1%} of torch's boxes on {len(images)} images"
    log.info("infer: %s", facts)
    if matched_frac < _MIN_MATCHED_FRAC:
        problem = f"infer.backend: {facts}, expected at least {_MIN_MATCHED_FRAC:.0%}"
        raise UserError("params.yaml", problem, "Set infer.backend to torch.")


def _matched_frac(pairs: Iterable[tuple[Detections, Detections]]) -> float:
    """Share of the first detector's boxes that overlap one of their class by the second; 1 where it has none."""
    best: list[float] = []
    for one, other in pairs:
        is_class = one.class_ids[:, None] == other.class_ids[None]
        best += (pairwise_iou(one.boxes_xyxy, other.boxes_xyxy) * is_class).max(axis=1, initial=0.0).tolist()
    return float(np.mean(np.array(best) >= _MATCHED_IOU)) if best else 1.0
