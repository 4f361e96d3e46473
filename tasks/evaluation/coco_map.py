"""Compute COCO mAP, overall and per class, from boxes in memory."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from faster_coco_eval import COCO, COCOeval_faster


class MapMetrics(TypedDict):
    """Average precision in percent, 0..100. A class without a box in the validation set has AP None."""

    mAP: float
    AP50: float
    AP75: float
    per_class: dict[str, float | None]


def coco_map(truth: pa.Table, predictions: pa.Table, classes: Sequence[str], max_detections: int = 100) -> MapMetrics:
    """Compute COCO AP50:95, AP50 and AP75 of one model.

    Args:
        truth: schemas.ANNOTATED.
        predictions: rows with image_id, boxes_xyxy, scores, labels; images of ``truth`` only.
        classes: names by class index.
        max_detections: boxes per image and class that count.
    """
    ground_truth = coco_ground_truth(truth, classes)
    found = coco_results(truth, predictions)
    if not ground_truth.dataset["annotations"]:
        return MapMetrics(mAP=0.0, AP50=0.0, AP75=0.0, per_class=dict.fromkeys(classes))
    if not found:
        present = {box["category_id"] for box in ground_truth.dataset["annotations"]}
        per_class = {name: 0.0 if index + 1 in present else None for index, name in enumerate(classes)}
        return MapMetrics(mAP=0.0, AP50=0.0, AP75=0.0, per_class=per_class)
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.run()
    return _summary(evaluation.eval["precision"], classes)


def coco_ground_truth(truth: pa.Table, classes: Sequence[str]) -> COCO:
    """Convert a validation set to COCO's format; image and class numbers count from 1, in the order of ``truth``."""
    number = _image_numbers(truth)
    ground_truth = COCO()
    ground_truth.dataset = {
        "images": _images(truth, number),
        "annotations": _boxes(truth, number),
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(classes)],
    }
    ground_truth.createIndex()
    return ground_truth


def coco_results(truth: pa.Table, predictions: pa.Table) -> list[dict[str, Any]]:
    """Convert predictions to COCO results, with the numbers of ``coco_ground_truth``."""
    return _results(predictions, _image_numbers(truth))


def _image_numbers(truth: pa.Table) -> dict[str, int]:
    return {image_id: index + 1 for index, image_id in enumerate(truth["image_id"].to_pylist())}


def _summary(precision: np.ndarray[Any, Any], classes: Sequence[str]) -> MapMetrics:
    """Average precisions (10 IoU, 101 recall, K classes, areas, max detections); -1 marks a class without truth."""
    kept = precision[:, :, :, 0, -1].astype(np.float64)
    kept[kept < 0] = np.nan

    def percent(values: np.ndarray[Any, Any]) -> float | None:
        return None if np.isnan(values).all() else round(100 * float(np.nanmean(values)), 4)

    return MapMetrics(
        mAP=percent(kept) or 0.0,
        AP50=percent(kept[0]) or 0.0,
        AP75=percent(kept[5]) or 0.0,
        per_class={name: percent(kept[:, :, index]) for index, name in enumerate(classes)},
    )


def _images(truth: pa.Table, number: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "id": number[row["image_id"]],
            "width": row["width_px"],
            "height": row["height_px"],
            "file_name": row["uri"],
        }
        for row in truth.to_pylist()
    ]


def _boxes(truth: pa.Table, number: dict[str, int]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for row in truth.to_pylist():
        boxes = np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), row["class_ids"], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number[row["image_id"]],
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return annotations


def _results(predictions: pa.Table, number: dict[str, int]) -> list[dict[str, Any]]:
    results = []
    for row in predictions.to_pylist():
        boxes = np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), row["scores"], row["class_ids"], strict=True):
            results.append(
                {
                    "image_id": number[row["image_id"]],
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    return results
