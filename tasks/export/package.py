"""Put the folder of an export together: network, program, metadata, and what was measured."""

import importlib.metadata
import os
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

import tasks
from detectron_ext.meta_arch import PerImageRCNN
from tasks.data.images import ImageSource
from tasks.export.calibration import calibration_inputs
from tasks.export.measure import MATCHED_IOU, Accuracy, Speed, measure_accuracy, measure_speed, original_detector
from tasks.export.network import NETWORK_FILES, write_network
from tasks.export.packages import RUNTIME_PACKAGES, Format, Precision, require_packages
from tasks.export.prune import PrunedDetector
from tasks.export.runtime import METADATA_FILE, ExportedDetector
from tasks.model.detector import tile_config
from tasks.params import StageParams
from tasks.params.promotion import ExportParams
from tasks.runtime.errors import UserError
from tasks.storage import files

PROGRAM = "detect.pyz"
_PROGRAM_SOURCES = (
    "detectron_ext/__init__.py",
    "detectron_ext/tile_windows.py",
    "tasks/__init__.py",
    "tasks/data/__init__.py",
    "tasks/data/image_decoding.py",
    "tasks/export/__init__.py",
    "tasks/export/runtime.py",
)
"""Relative to the folder that holds our packages."""
_PROGRAM_MAIN = "from tasks.export.runtime import main\n\nmain()\n"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The same in every program, so that the same sources give the same bytes."""


class ExportRefusedError(UserError):
    """The exported detector finds less than the original."""

    exit_code = 1


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how."""

    model: PerImageRCNN
    """In eval mode, on the CPU."""
    params: StageParams
    """Of the round: sections classes, model, evaluate and preannotation."""
    limits: ExportParams
    export_format: Format
    precision: Precision
    lineage: Mapping[str, Any]
    """Names and digests by which the model is found again; goes into the metadata as it is."""
    operating_points: Mapping[str, Any]
    """Of the validation set by class; goes into the metadata as it is."""
    pruned: PrunedDetector | None = None
    """What is exported in place of ``model``, which it is measured beside; None: ``model`` itself."""


@dataclass(frozen=True)
class ExportImages:
    """The images that an export is made and measured with."""

    root: Path
    """Folder that uris are relative to."""
    calibration: pa.Table
    """Rows with image_id and uri: images of people's labels, never trained on; empty for fp32."""
    val: pa.Table
    """schemas.ANNOTATED."""


@dataclass(frozen=True)
class Measured:
    """What an export was measured to be."""

    size_mb: float
    """Of the network's files, in 10^6 bytes."""
    size_original_mb: float
    accuracy: Accuracy
    speed: dict[str, list[Speed]]
    """``original`` and ``export``, by number of threads."""


def write_export(
    request: ExportRequest, images: ExportImages, target: Path, on_step: Callable[[str], None] = lambda line: None
) -> Measured:
    """Write the folder ``target``, which does not exist yet.

    Args:
        request: what to export.
        images: for the ranges of int8, and to measure.
        target: the folder.
        on_step: called with a line of text before each step.

    Raises:
        ExportRefusedError: the mAP falls by more than ``limits.map_tolerance_points``; no folder is left.
        UserError: a package is missing, an image is out of reach, or int8 has no images for its ranges.
    """
    require_packages(request.export_format, request.precision)
    with files.atomic_folder(target) as draft:
        on_step(f"writing the network: {request.export_format}, {request.precision}")
        num_inputs = _write_network(request, images, draft)
        _write_program(draft / PROGRAM)
        files.write_json(draft / METADATA_FILE, _metadata(request, num_inputs, None))
        measured = _measure(request, images, draft, on_step)
        _require_accuracy(measured.accuracy, request)
        files.write_json(draft / METADATA_FILE, _metadata(request, num_inputs, measured))
        _write_texts(request, draft, measured)
    return measured


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an export, by name."""
    return {path.name: files.sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _write_network(request: ExportRequest, images: ExportImages, folder: Path) -> int:
    """Write the network; return from how many inputs int8 has its ranges."""
    calibration = None
    if request.precision == "int8":
        limit = request.limits.calibration_images
        calibration = calibration_inputs(
            images.root, images.calibration, request.params.model, limit, without_int8="export fp32"
        )
    model = request.model if request.pruned is None else request.pruned.model
    write_network(model, folder, request.export_format, calibration)
    return len(calibration or ())


def _write_program(path: Path) -> None:
    """Write the program as one file that Python runs and can import from."""
    packages = Path(tasks.__file__).parents[1]
    contents = {name: (packages / name).read_bytes() for name in _PROGRAM_SOURCES}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**contents, "__main__.py": _PROGRAM_MAIN.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)


def _measure(request: ExportRequest, images: ExportImages, folder: Path, on_step: Callable[[str], None]) -> Measured:
    original = original_detector(request.model, request.params)
    on_step(f"measuring mAP on {images.val.num_rows} validation images")
    accuracy = measure_accuracy(original, ExportedDetector(folder), images.val, request.params, images.root)
    timed = images.val.slice(0, request.limits.timed_images).select(["image_id", "uri"]).to_pylist()
    source = ImageSource(images.root)
    encoded = [source.open(row["uri"], row["image_id"], Path.read_bytes) for row in timed]
    threads = sorted({1, len(os.sched_getaffinity(0))})
    on_step(f"timing {len(encoded)} images with {' and '.join(map(str, threads))} threads")
    sides: dict[str, Callable[[int], Callable[[bytes], Any]]] = {
        "original": lambda number: original,  # its threads are torch's
        "export": lambda number: ExportedDetector(folder, number).detect,
    }
    speed = measure_speed(sides, encoded, threads)
    size_bytes = sum((folder / name).stat().st_size for name in NETWORK_FILES[request.export_format])
    weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in request.model.state_dict().values())
    return Measured(size_bytes / 1e6, weights_bytes / 1e6, accuracy, speed)


def _require_accuracy(accuracy: Accuracy, request: ExportRequest) -> None:
    limits, loss = request.limits, accuracy.map_original - accuracy.map_export
    fix = "Export fp32, or give int8 more calibration images."
    if request.pruned is not None:
        fix = "Prune less, or train longer after it (export.prune_finetune_iterations)."
    if loss > limits.map_tolerance_points:
        raise ExportRefusedError(
            "gleaner export",
            f"the mAP of the export is {accuracy.map_export:.2f} against {accuracy.map_original:.2f} of the original, "
            f"expected a loss of at most {limits.map_tolerance_points:g} points (export.map_tolerance_points)",
            fix,
        )


def _metadata(request: ExportRequest, num_calibration_inputs: int, measured: Measured | None) -> dict[str, Any]:
    model = request.params.model
    return {
        "format": request.export_format,
        "precision": request.precision,
        "network": NETWORK_FILES[request.export_format][0],
        "input": "image, or a tile of one larger than tiles.side_px: RGB uint8 (height, width, 3), resized to "
        "short_side_px within long_side_px",
        "outputs": "boxes_xyxy (N, 4) in pixels of the input, scores (N), class_ids (N), "
        "class_probs (N, K+1) with background last",
        "classes": list(request.params.classes),
        "short_side_px": model.short_side_px,
        "long_side_px": model.long_side_px,
        "tiles": asdict(tile_config(model)),
        "nms_iou_threshold": model.nms_iou_threshold,
        "score_threshold": request.params.preannotation.score_threshold,
        "operating_points": dict(request.operating_points),
        "calibration_inputs": num_calibration_inputs,
        "lineage": dict(request.lineage),
        **({} if request.pruned is None else {"pruning": request.pruned.record}),
        "made_with": {name: importlib.metadata.version(name) for name in _packages(request)},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "measured": None if measured is None else asdict(measured),
    }


def _packages(request: ExportRequest) -> Sequence[str]:
    quantized_by = ["onnxruntime", "onnx"] if request.precision == "int8" else []
    return sorted({"torch", "numpy", "pillow", RUNTIME_PACKAGES[request.export_format], *quantized_by})


def _write_texts(request: ExportRequest, folder: Path, measured: Measured) -> None:
    needed = ("numpy", "pillow", RUNTIME_PACKAGES[request.export_format])
    pins = "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in needed)
    files.write_bytes(folder / "requirements.txt", pins.encode())
    templates = jinja2.Environment(  # noqa: S701 (Markdown, of names that our own parameters allow)
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = templates.get_template("readme.md.j2").render(
        request=request, measured=measured, program=PROGRAM, metadata_file=METADATA_FILE, iou=MATCHED_IOU
    )
    files.write_bytes(folder / "README.md", text.encode())
