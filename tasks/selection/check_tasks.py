"""Build the tasks in which people check a label: its present boxes are drawn, and what the teacher would add."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectron_ext.uncertainty_metrics import pairwise_iou
from tasks.data.annotations import AnnotatedImage, read_annotated
from tasks.data.detections import read_shards
from tasks.data.schemas import AnnotationTask, Box, Prediction, RunnerUp
from tasks.evaluation.label_errors import MIN_IOU
from tasks.params.stages import PreannotationParams
from tasks.runtime.errors import UserError
from tasks.selection.preannotation import clip_box, predrawn_boxes

_LABEL_SCORE = 1.0
_SAME_CORNERS_PX = 0.01


def check_tasks(
    params: PreannotationParams, classes: Sequence[str], relabel: pa.Table, labeled: Path, detections: Path
) -> list[AnnotationTask]:
    """Return a task for each label to be checked, by rank.

    Args:
        params: score a detection needs to be drawn, and overlap up to which two boxes are two objects.
        classes: class names in the order of their indices.
        relabel: schemas.RELABEL.
        labeled: labeled images with their boxes, schemas.ANNOTATED.
        detections: folder with the shards of the labeled images.

    Raises:
        UserError: an image is not labeled, or was not seen by the teacher.
    """
    rows = sorted(relabel.to_pylist(), key=lambda row: row["rank"])
    if not rows:
        return []
    wanted = pa.array([row["image_id"] for row in rows], pa.string())
    images = {image.image_id: image for image in read_annotated(labeled, classes)}
    detected = {
        found["image_id"]: found
        for shard in read_shards(detections, "labeled")
        for found in shard.filter(pc.is_in(shard["image_id"], value_set=wanted)).to_pylist()
    }
    for row in rows:
        for known, where in ((images, labeled), (detected, detections)):
            if row["image_id"] not in known:
                problem = f"image {row['image_id']} is missing, expected every image whose label is to be checked"
                raise UserError(where, problem, "Run: dvc repro handoff")
    return [_check_task(row, images[row["image_id"]], detected[row["image_id"]], classes, params) for row in rows]


def _check_task(
    row: dict[str, Any],
    image: AnnotatedImage,
    detected: dict[str, Any],
    classes: Sequence[str],
    params: PreannotationParams,
) -> AnnotationTask:
    size = {"width_px": image.width_px, "height_px": image.height_px}
    proposed = predrawn_boxes(detected, size, classes, params)
    if row["kind"] == "missing":  # another teacher may have seen it, or this one with a low score
        asked = Prediction(
            category=row["class_name"],
            xyxy_px=clip_box(row["box_xyxy"], size),
            score=row["strength"],
            doubt=round(1 - row["strength"], 4),
        )
        proposed = (*(box for box in proposed if _iou(box, [asked]) <= params.suppress_iou), asked)
    added = [box for box in proposed if _iou(box, image.boxes) < MIN_IOU]
    return AnnotationTask(
        image_id=image.image_id,
        uri=image.uri,
        **size,
        rank=row["rank"],
        reason=row["reason"],
        uncertainty=row["strength"],
        predictions=(*(_present_box(box, row) for box in image.boxes), *added),
        model_digest=detected["model_digest"],
        checks_batch=row["batch"],
    )


def _present_box(box: Box, row: dict[str, Any]) -> Prediction:
    """Return a box of the label as it is; the doubted one says how much, and what the teacher sees there."""
    corners = zip(box.xyxy_px, row["box_xyxy"], strict=True)
    if row["kind"] == "missing" or any(abs(a - b) > _SAME_CORNERS_PX for a, b in corners):
        return Prediction(category=box.category, xyxy_px=box.xyxy_px, score=_LABEL_SCORE)
    seen = RunnerUp(category=row["class_name"], score=row["strength"]) if row["kind"] == "swapped" else None
    doubt = round(row["strength"], 4)
    return Prediction(category=box.category, xyxy_px=box.xyxy_px, score=_LABEL_SCORE, doubt=doubt, runner_up=seen)


def _iou(box: Prediction, others: Sequence[Box | Prediction]) -> float:
    """Return the largest IoU of a box with others; 0 without any."""
    corners = np.array([other.xyxy_px for other in others], dtype=np.float64).reshape(-1, 4)
    return float(pairwise_iou(np.array([box.xyxy_px]), corners).max(initial=0.0))
