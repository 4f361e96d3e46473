"""Measure an exported detector beside the one it was made of: mAP, agreement of boxes, latency, throughput, energy.

The two take turns image by image, so that a busy machine slows both.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.data.image_decoding import open_rgb
from tasks.data.images import ImageSource
from tasks.data.schemas import PREDICTIONS
from tasks.evaluation.coco_map import coco_map
from tasks.export.runtime import ExportedDetector, FoundObjects
from tasks.model.detector import detect
from tasks.params import StageParams

MATCHED_IOU = 0.99
"""A box of the export is that of the original from this overlap on."""
_MIN_MATCHED_SCORE = 0.05
_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Speed:
    """Time of one image, from its bytes to its detections, with a number of threads."""

    threads: int
    p50_ms: float
    p95_ms: float
    images_per_s: float
    joules_per_image: float | None
    """By the processor's own counter (RAPL); None where it tells nothing."""


@dataclass(frozen=True)
class Accuracy:
    """How the export's detections on the validation images compare with the original's."""

    map_original: float
    """mAP of the original in percent, computed in the same run."""
    map_export: float
    matched_frac: float
    """Share of the original's boxes above a score of 0.05 with a box of the same class in the export that overlaps by
    an IoU of at least ``MATCHED_IOU``."""
    mean_iou: float
    """Mean IoU of those boxes with the export's best box of the same class; 0 for a box without one."""
    num_images: int


def original_detector(model: PerImageRCNN, params: StageParams) -> Callable[[bytes | Path], Detections]:
    """Return a function from an image to the original's detections, in full precision."""

    def run(image: bytes | Path) -> Detections:
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        return detect(model, [np.asarray(open_rgb(source))], params.model, mixed_precision=False)[0]

    return run


def measure_accuracy(
    original: Callable[[Path], Detections],
    export: ExportedDetector,
    truth: pa.Table,
    params: StageParams,
    root: Path,
    on_image: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Run both detectors over the validation images.

    Args:
        original: of ``original_detector``.
        export: the other.
        truth: schemas.ANNOTATED.
        params: sections classes and evaluate.
        root: folder that image uris are relative to.
        on_image: called after each image.
    """
    source = ImageSource(root)
    rows: dict[str, list[dict[str, Any]]] = {"original": [], "export": []}
    best_ious: list[float] = []
    min_score = params.evaluate.score_threshold
    for image in truth.select(["image_id", "uri"]).to_pylist():
        path_of = image["uri"], image["image_id"]
        one = source.open(*path_of, original).filter_by_score(min_score)
        other = source.open(*path_of, lambda path: export.detect(path, min_score))
        rows["original"].append(_row(image["image_id"], one.boxes_xyxy, one.scores, one.class_ids))
        rows["export"].append(_row(image["image_id"], other.boxes_xyxy_px, other.scores, other.class_ids))
        best_ious += _best_ious(one, other).tolist()
        on_image()
    maps = {
        name: float(coco_map(truth, pa.Table.from_pylist(found, PREDICTIONS), params.classes)["mAP"])
        for name, found in rows.items()
    }
    ious_N = np.array(best_ious or [1.0])  # nothing found by either is agreement
    matched_frac = float((ious_N >= MATCHED_IOU).mean())
    return Accuracy(maps["original"], maps["export"], matched_frac, float(ious_N.mean()), truth.num_rows)


def _row(image_id: str, boxes: NDArray[Any], scores: NDArray[Any], class_ids: NDArray[Any]) -> dict[str, Any]:
    return {
        "model": "teacher",
        "image_id": image_id,
        "boxes_xyxy": boxes.astype(np.float32).ravel(),
        "scores": scores.astype(np.float32),
        "class_ids": class_ids,
    }


def _best_ious(one: Detections, other: FoundObjects) -> NDArray[Any]:
    """Return for each box of ``one`` above the least score the IoU with the best box of its class in ``other``."""
    is_counted = one.scores >= _MIN_MATCHED_SCORE
    boxes_N4, class_ids_N = one.boxes_xyxy[is_counted], one.class_ids[is_counted]
    iou_NM = pairwise_iou(boxes_N4, other.boxes_xyxy_px) * (class_ids_N[:, None] == other.class_ids[None])
    best_N: NDArray[Any] = iou_NM.max(axis=1, initial=0.0)
    return best_N


def measure_speed(
    sides: Mapping[str, Callable[[int], Callable[[bytes], Any]]],
    images: Sequence[bytes],
    threads: Sequence[int],
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, list[Speed]]:
    """Time the detectors over the same images, one image at a time, in turns.

    Args:
        sides: by name, a function from a number of threads to a detector.
        images: encoded images.
        threads: numbers of threads to try.
        on_image: called after each image and number of threads.
    """
    speeds: dict[str, list[Speed]] = {name: [] for name in sides}
    for number in threads:
        detectors = {name: make(number) for name, make in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        with _torch_threads(number):
            for run in detectors.values():
                run(images[0])  # the first run allocates and compiles
            for image in images:
                for name, run in detectors.items():
                    started = time.perf_counter()
                    run(image)
                    seconds[name].append(time.perf_counter() - started)
                on_image()
            joules = {name: _joules(run, images) for name, run in detectors.items()}
        for name, each in seconds.items():
            p50, p95 = np.percentile(each, [50, 95])
            speeds[name].append(Speed(number, p50 * 1e3, p95 * 1e3, len(each) / sum(each), joules[name]))
    return speeds


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _joules(run: Callable[[bytes], Any], images: Sequence[bytes]) -> float | None:
    """Energy of one image by the processor's counters, of everything that runs on it; None where it tells nothing."""
    before = _energy_uj()
    if before is None:
        return None
    for image in images:
        run(image)
    after = _energy_uj()
    if after is None or after < before:  # the counters start anew now and then
        return None
    return (after - before) / 1e6 / len(images)


def _energy_uj() -> int | None:
    """Sum of the energy counters of all processor packages in microjoules."""
    try:
        counters = [int(path.read_text()) for path in _RAPL.glob("intel-rapl:?/energy_uj")]
    except OSError:  # readable by root alone on many machines
        return None
    return sum(counters) if counters else None
