"""From a task of the manifest to a task of Label Studio. Its boxes are in percent of the image's sides."""

from typing import Any

from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.providers.label_studio.labeling_config import CONTROL, IMAGE
from tasks.data.schemas import AnnotationTask, Prediction

MODEL_VERSION = "gleaner"
"""``model_version`` of every pre-drawn box. The label stream shows the boxes of one version per project only: with the
teacher's digest in its place, tasks of the last batch would lose theirs in the moment the next batch is offered. The
digest is in the task's data instead."""
_SHORT_DIGEST = 12


def to_task(task: AnnotationTask, delivery: AnnotationBatch, image: str, image_sha256: str | None) -> dict[str, Any]:
    """One task for the import.

    Args:
        task: line of the manifest.
        delivery: the batch it is offered in.
        image: where Label Studio finds the picture: a path of its own, or an s3 uri.
        image_sha256: of the picture's bytes now, where they can be read.
    """
    return {
        "data": {
            "image": image,
            "about": f"Batch {delivery.batch}, pick {task.rank}: {task.reason}",
            "image_id": task.image_id,
            "image_sha256": image_sha256,
            "delivery": delivery.key,
            "batch": delivery.batch,
            "rank": task.rank,
            "reason": task.reason,
            "width_px": task.width_px,
            "height_px": task.height_px,
            "teacher": task.model_digest[:_SHORT_DIGEST],
        },
        "predictions": [_predictions(task)] if task.predictions else [],
    }


def _predictions(task: AnnotationTask) -> dict[str, Any]:
    scores = [prediction.score for prediction in task.predictions]
    return {
        "model_version": MODEL_VERSION,
        "score": sum(scores) / len(scores),
        "result": [_region(number, box, task) for number, box in enumerate(task.predictions)],
    }


def _region(number: int, box: Prediction, task: AnnotationTask) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy_px
    return {
        "id": f"teacher-{number}",
        "type": "rectanglelabels",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_width": task.width_px,
        "original_height": task.height_px,
        "image_rotation": 0,
        "score": box.score,
        "value": {
            "x": 100 * x1 / task.width_px,
            "y": 100 * y1 / task.height_px,
            "width": 100 * (x2 - x1) / task.width_px,
            "height": 100 * (y2 - y1) / task.height_px,
            "rotation": 0,
            "rectanglelabels": [box.category],
        },
    }
