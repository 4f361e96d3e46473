"""Measure the COCO evaluation against pycocotools: 5,000 images, 100 detections each, 80 classes.

Run: ``make bench``. Both take the same tables and give the same numbers, which is checked. pycocotools needs its own
form of the tables first; that is measured apart and not part of the ratio.
"""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.coco_map import coco_map
from tasks.evaluation.paired_bootstrap import bootstrap_map

_NUM_IMAGES, _NUM_DETECTIONS, _NUM_CLASSES = 5_000, 100, 80
_MEAN_OBJECTS = 7.3  # per image, as in COCO
_SIDE_PX = 640.0
_NUM_SAMPLES = 100
_MIN_SPEEDUP = 5.0
_TOLERANCE = 1e-9
_Result = TypeVar("_Result")


def random_tables(
    num_images: int, num_detections: int, num_classes: int, seed: int, crowd_frac: float = 0.0
) -> tuple[pa.Table, pa.Table]:
    """Draw objects, and detections of which most are noise and the others lie more or less on an object.

    Returns:
        Validation set with a column ``is_crowd``, and predictions.
    """
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for number in range(num_images):
        boxes = _random_boxes(rng, int(rng.poisson(_MEAN_OBJECTS)))
        class_ids = rng.integers(0, num_classes, len(boxes))
        image = {"image_id": f"{number:016x}", "uri": "", "width_px": 640, "height_px": 640, "batch": -1}
        crowd = rng.uniform(size=len(boxes)) < crowd_frac
        truth.append({**image, "boxes_xyxy": boxes.ravel(), "class_ids": class_ids, "is_crowd": crowd})
        copied = np.repeat(np.arange(len(boxes)), 3)[:num_detections]
        side_px = np.tile(boxes[copied, 2:] - boxes[copied, :2], 2)
        near = boxes[copied] + rng.normal(size=(len(copied), 4)) * side_px * rng.choice(
            [0.02, 0.1, 0.3], (len(copied), 1)
        )
        near = np.hstack([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])])
        noise = _random_boxes(rng, num_detections - len(copied))
        predictions.append(
            {
                "model": "teacher",
                "image_id": image["image_id"],
                "boxes_xyxy": np.vstack([near, noise]).ravel(),
                "scores": rng.beta(1, 4, num_detections),
                "class_ids": np.r_[class_ids[copied], rng.integers(0, num_classes, len(noise))],
            }
        )
    schema = (
        ANNOTATED if "is_crowd" in ANNOTATED.names else ANNOTATED.append(pa.field("is_crowd", pa.list_(pa.bool_())))
    )
    return pa.Table.from_pylist(truth, schema), pa.Table.from_pylist(predictions, PREDICTIONS)


def _random_boxes(rng: np.random.Generator, number: int) -> np.ndarray[Any, Any]:
    corner_px = rng.uniform(0, 0.8 * _SIDE_PX, (number, 2))
    return np.hstack([corner_px, corner_px + np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))])


def coco_documents(truth: pa.Table, predictions: pa.Table, num_classes: int) -> tuple[dict[str, Any], list[Any]]:
    """Convert tables to what pycocotools reads: a data set, and a list of results."""
    number = {image_id: index + 1 for index, image_id in enumerate(truth["image_id"].to_pylist())}

    def boxes(row: dict[str, Any]) -> list[list[float]]:
        xyxy = np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
        return [[*map(float, box)] for box in np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]])]

    annotations = [
        {
            "image_id": number[row["image_id"]], "category_id": label + 1, "bbox": box, "area": box[2] * box[3],
            "iscrowd": int(crowd),
        }
        for row in truth.to_pylist()
        for box, label, crowd in zip(boxes(row), row["class_ids"], row["is_crowd"], strict=True)
    ]  # fmt: skip
    dataset = {
        "info": {},
        "images": [{"id": index} for index in number.values()],
        "annotations": [{"id": index + 1, **annotation} for index, annotation in enumerate(annotations)],
        "categories": [{"id": index + 1, "name": str(index)} for index in range(num_classes)],
    }
    results = [
        {"image_id": number[row["image_id"]], "category_id": label + 1, "bbox": box, "score": score}
        for row in predictions.to_pylist()
        for box, score, label in zip(boxes(row), row["scores"], row["class_ids"], strict=True)
    ]
    return dataset, results


def pycocotools_precision(dataset: dict[str, Any], results: list[Any]) -> np.ndarray[Any, Any]:
    """Evaluate by pycocotools; precision at (10 IoU, 101 recalls, K classes, 4 areas, 3 limits), -1 without objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def _timed(function: Callable[[], _Result]) -> tuple[_Result, float]:
    started_s = time.perf_counter()
    return function(), time.perf_counter() - started_s


def main() -> None:
    """Measure and print.

    Raises:
        RuntimeError: the two evaluations differ.
    """
    classes = [str(index) for index in range(_NUM_CLASSES)]
    truth, predictions = random_tables(_NUM_IMAGES, _NUM_DETECTIONS, _NUM_CLASSES, seed=0, crowd_frac=0.02)
    documents, convert_s = _timed(lambda: coco_documents(truth, predictions, _NUM_CLASSES))
    own, own_s = _timed(lambda: coco_map(truth, predictions, classes))
    precision, reference_s = _timed(lambda: pycocotools_precision(*documents))
    _, bootstrap_s = _timed(lambda: bootstrap_map(truth, predictions, classes=classes, samples=_NUM_SAMPLES, seed=0))
    found = {
        name: 100 * float(values[values > -1].mean())
        for name, values in zip(
            ("mAP", "AP_small", "AP_medium", "AP_large"), np.moveaxis(precision[..., 2], 3, 0), strict=True
        )
    }
    differences = {name: abs(value - float(own[name] or 0.0)) for name, value in found.items()}  # type: ignore[literal-required]
    if max(differences.values()) > _TOLERANCE:
        raise RuntimeError(f"differences from pycocotools are {differences}, expected at most {_TOLERANCE:g}")
    title = (
        f"mAP of {_NUM_IMAGES:,} images x {_NUM_DETECTIONS} detections x {_NUM_CLASSES} classes, four ranges of area"
    )
    table = Table("", "seconds", title=title)
    table.add_row("coco_map, from tables", f"{own_s:.2f}")
    table.add_row("pycocotools, from lists of dicts", f"{reference_s:.2f}")
    table.add_row("tables to lists of dicts", f"{convert_s:.2f}")
    table.add_row(f"bootstrap of mAP, {_NUM_SAMPLES} samples", f"{bootstrap_s:.2f}")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        f"pycocotools / coco_map: {reference_s / own_s:.1f}, bar {_MIN_SPEEDUP:.0f}; "
        f"largest difference {max(differences.values()):.1e} percent points"
    )


if __name__ == "__main__":
    main()
