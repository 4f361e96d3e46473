"""Build a validation context, and annotations to validate."""

from datetime import UTC, datetime
from typing import Any

from flows.annotation.annotation_rules import ValidationContext
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.params.annotation import LabelValidationParams

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 100, 80
IMAGE = "a" * 16
COLLECTED_AT = datetime(2026, 3, 2, tzinfo=UTC)
LIMITS = LabelValidationParams(
    min_box_side_px=2.0,
    duplicate_iou_threshold=0.9,
    max_boxes_per_image=5000,
    max_clock_skew_minutes=10.0,
    min_teacher_ap50=50.0,
    confident_score=0.95,
    min_confident_boxes=3,
    max_box_count_ratio=10.0,
)


def make_task(image_id: str, *scores: float) -> AnnotationTask:
    """Build a task with a pre-annotated box of each score."""
    predictions = [
        Prediction(category="cat", xyxy_px=(10.0 * n, 1, 10.0 * n + 9, 9), score=s) for n, s in enumerate(scores)
    ]
    return AnnotationTask(
        image_id=image_id,
        uri=f"data/images/{image_id}.png",
        width_px=WIDTH,
        height_px=HEIGHT,
        rank=1,
        reason="test",
        uncertainty=0.5,
        predictions=tuple(predictions),
        model_digest="d",
    )


def make_context(
    *tasks: AnnotationTask,
    is_teacher_trusted: bool = True,
    approved: frozenset[str] = frozenset(),
    collected_at: datetime = COLLECTED_AT,
) -> ValidationContext:
    """Build the context of batch 3."""
    offered = tasks or (make_task(IMAGE), make_task("b" * 16))
    return ValidationContext(
        batch=3,
        tasks={task.image_id: task for task in offered},
        classes=CLASSES,
        limits=LIMITS,
        is_teacher_trusted=is_teacher_trusted,
        collected_at=collected_at,
        approved=approved,
    )


def make_annotation(**changes: Any) -> dict[str, Any]:
    """Build a valid annotation with these changes."""
    valid = {
        "image_id": IMAGE,
        "status": "labeled",
        "boxes": [{"category": "cat", "xyxy_px": [10, 10, 30, 40]}],
        "annotator": "ann",
        "finished_at": "2026-03-01T10:00:00+01:00",
        "seconds_spent": 12.5,
    }
    return {**valid, **changes}


def make_box(*corners: Any, category: Any = "cat", **more: Any) -> dict[str, Any]:
    """Build one box."""
    return {"category": category, "xyxy_px": list(corners), **more}
