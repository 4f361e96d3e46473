"""What was offered, and answers to it."""

from datetime import UTC, datetime
from typing import Any

from flows.labels.door.offer import Offer
from tasks.contracts import HandoffTask, Prediction
from tasks.people_sections import DoorParams

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 100, 80
IMAGE = "a" * 16
COLLECTED_AT = datetime(2026, 3, 2, tzinfo=UTC)
RULES = DoorParams(
    min_side_px=2.0,
    duplicate_iou=0.9,
    clock_ahead_minutes=10.0,
    trusted_ap50=50.0,
    sure_score=0.95,
    sure_boxes=3,
    most_boxes_times=10.0,
)


def task(image_id: str, *scores: float) -> HandoffTask:
    """With a pre-drawn box of each score."""
    predictions = [
        Prediction(category="cat", xyxy_px=(10.0 * n, 1, 10.0 * n + 9, 9), score=s) for n, s in enumerate(scores)
    ]
    return HandoffTask(
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


def offer(
    *tasks: HandoffTask, trusted: bool = True, confirmed: frozenset[str] = frozenset(), at: datetime = COLLECTED_AT
) -> Offer:
    """Of batch 3."""
    offered = tasks or (task(IMAGE), task("b" * 16))
    return Offer(
        batch=3,
        tasks={task.image_id: task for task in offered},
        classes=CLASSES,
        rules=RULES,
        teacher_trusted=trusted,
        collected_at=at,
        confirmed=confirmed,
    )


def answer(**changes: Any) -> dict[str, Any]:
    """A good one, but for the changes."""
    good = {
        "image_id": IMAGE,
        "status": "labeled",
        "boxes": [{"category": "cat", "xyxy_px": [10, 10, 30, 40]}],
        "annotator": "ann",
        "finished_at": "2026-03-01T10:00:00+01:00",
        "seconds_spent": 12.5,
    }
    return {**good, **changes}


def box(*corners: Any, category: Any = "cat", **more: Any) -> dict[str, Any]:
    """One drawn box."""
    return {"category": category, "xyxy_px": list(corners), **more}
