"""Detect objects with an exported detector: ``python detect.pyz IMAGE...`` in the folder of the export.

Needs NumPy, Pillow and the runtime of the export's format, onnxruntime or OpenVINO. This file,
``image_decoding.py`` and ``tile_windows.py`` are all of Gleaner that ``detect.pyz`` holds.

Shape shorthand: N detections of one image, K foreground classes.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectron_ext.tile_windows import TileConfig, Window, merge_boxes, tile_windows
from tasks.data.image_decoding import ImageProblem, open_rgb

METADATA_FILE = "metadata.json"
_EXIT_UNREADABLE = 2
_Run = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class FoundObjects:
    """What the detector reports for one image, by descending score."""

    boxes_xyxy_px: NDArray[np.float32]
    """(N, 4) in pixels of the image as shown."""
    scores: NDArray[np.float32]
    """(N,) the largest foreground posterior."""
    class_ids: NDArray[np.int64]
    """(N,) of ``ExportedDetector.classes``."""
    class_probs: NDArray[np.float32]
    """(N, K+1) posteriors, background last."""

    def rows(self, kept: NDArray[np.int64]) -> "FoundObjects":
        """Return some of the detections, by their numbers."""
        return FoundObjects(self.boxes_xyxy_px[kept], self.scores[kept], self.class_ids[kept], self.class_probs[kept])


class ExportedDetector:
    """The detector of an export's folder."""

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        """Load the network.

        Args:
            folder: written by ``gleaner export``.
            num_threads: processor threads of one image; None: all cores.

        Raises:
            OSError: the folder holds no export.
            ImportError: the runtime of its format is not installed.
        """
        self.metadata: dict[str, Any] = json.loads((folder / METADATA_FILE).read_text("utf-8"))
        self.classes: list[str] = self.metadata["classes"]
        threads = num_threads or len(os.sched_getaffinity(0))
        self._run = load_network(folder / self.metadata["network"], self.metadata["format"], threads)

    def detect(self, image: bytes | Path | NDArray[np.uint8], min_score: float | None = None) -> FoundObjects:
        """Detect objects on one image.

        Args:
            image: an encoded image, its path, or RGB pixels (H, W, 3).
            min_score: lowest score of a detection; None: the threshold in the export's metadata.

        Raises:
            OSError: the image is missing or broken.
            ImageProblem: it has too many pixels, or a pixel mode without a rule.
        """
        pixels = image if isinstance(image, np.ndarray) else _decode(image)
        windows = tile_windows(pixels.shape[0], pixels.shape[1], TileConfig(**self.metadata["tiles"]))
        found = self._detect_by_tiles(pixels, windows) if windows else self._detect_part(pixels)
        score_threshold = self.metadata["score_threshold"] if min_score is None else min_score
        return found.rows(np.flatnonzero(found.scores >= score_threshold))

    def _detect_part(self, pixels: NDArray[np.uint8]) -> FoundObjects:
        """Detect on one part, which is resized as a whole; every score."""
        height_px, width_px = pixels.shape[:2]
        resized = resize(pixels, self.metadata["short_side_px"], self.metadata["long_side_px"])
        boxes, scores, class_ids, class_probs = self._run(resized)
        scale = np.array([width_px / resized.shape[1], height_px / resized.shape[0]] * 2, dtype=np.float32)
        boxes_N4 = np.clip(boxes * scale, 0, np.array([width_px, height_px] * 2, dtype=np.float32))
        has_area = np.flatnonzero((boxes_N4[:, 2:] > boxes_N4[:, :2]).all(axis=1))
        return FoundObjects(boxes_N4, scores, class_ids, class_probs).rows(has_area)

    def _detect_by_tiles(self, pixels: NDArray[np.uint8], windows: Sequence[Window]) -> FoundObjects:
        found = [self._detect_part(np.ascontiguousarray(window.cut(pixels))) for window in windows]
        scores, class_ids, class_probs = (
            np.concatenate([getattr(part, name) for part in found]) for name in ("scores", "class_ids", "class_probs")
        )
        boxes_by_part = [part.boxes_xyxy_px for part in found]
        size_px, threshold = (pixels.shape[0], pixels.shape[1]), self.metadata["nms_iou_threshold"]
        boxes, kept = merge_boxes(boxes_by_part, scores, class_ids, windows, size_px, threshold)
        return FoundObjects(boxes, scores, class_ids, class_probs).rows(kept)


def resize(pixels: NDArray[np.uint8], short_side_px: int, long_side_px: int) -> NDArray[np.uint8]:
    """Resize as ``detectron_ext.augmentation.resize`` does; a test compares the two."""
    height, width = pixels.shape[:2]
    factor = min(short_side_px / min(height, width), long_side_px / max(height, width))
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _decode(image: bytes | Path) -> NDArray[np.uint8]:
    return np.asarray(open_rgb(io.BytesIO(image) if isinstance(image, bytes) else image))


def load_network(network: Path, network_format: str, num_threads: int) -> _Run:
    """Load a network, and return the function from a resized RGB image (H, W, 3) to its outputs.

    Args:
        network: a file of the format; OpenVINO loads ONNX, too.
        network_format: ``onnx`` or ``openvino``.
        num_threads: processor threads of one image.
    """
    return (_load_onnx if network_format == "onnx" else _load_openvino)(network, num_threads)


def _load_onnx(network: Path, num_threads: int) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # it warns of every map whose size depends on the image
    session = onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


@cache
def openvino_core() -> Any:
    """Return the process's one OpenVINO core.

    With several, those that go leave the main thread with a stack for signals that is unmapped (OpenVINO 2026.1), and
    the next signal with a handler, such as that of a child that ended, ends the process.
    """
    import openvino

    return openvino.Core()


def _load_openvino(network: Path, num_threads: int) -> _Run:
    # Without the hint it computes in bfloat16 where the processor has it, with other results.
    config = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino_core().compile_model(network, "CPU", config)
    return lambda image: [np.array(output) for output in model({"image": image}).values()]


def main() -> None:
    """Print one JSON document a line for each image; an unreadable image is named on stderr and gives exit code 2."""
    parser = argparse.ArgumentParser(prog="detect.pyz", description="Detect objects; prints a JSON document an image.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", type=Path, default=Path(sys.argv[0]).resolve().parent, help="folder of the export")
    parser.add_argument("--min-score", type=float, help="lowest score of a detection (default: as exported)")
    parser.add_argument("--threads", type=int, help="processor threads (default: all cores)")
    options = parser.parse_args()
    detector = ExportedDetector(options.model, options.threads)
    exit_code = 0
    for path in options.images:
        try:
            found = detector.detect(path, options.min_score)
        except (OSError, ImageProblem, SyntaxError) as error:  # Pillow's reader of PNG raises SyntaxError
            sys.stderr.write(f"{path}: the image is unreadable ({error}), expected a whole image\n")
            exit_code = _EXIT_UNREADABLE
            continue
        sys.stdout.write(json.dumps({"image": str(path), "objects": _objects(found, detector.classes)}) + "\n")
    sys.exit(exit_code)


def _objects(found: FoundObjects, classes: Sequence[str]) -> list[dict[str, Any]]:
    columns = found.boxes_xyxy_px.tolist(), found.scores.tolist(), found.class_ids.tolist(), found.class_probs.tolist()
    return [
        {"class": classes[class_id], "score": score, "box_xyxy_px": box, "posteriors": posteriors}
        for box, score, class_id, posteriors in zip(*columns, strict=True)
    ]
