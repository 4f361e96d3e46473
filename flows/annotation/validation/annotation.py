"""One answer held against its task: schema, classes, boxes, and the bytes it was made on.

Answers with a time that has not come yet: some clock is wrong, an annotator's or that of their files.

Taken at its word, such an answer would count before everything said after it, for years. The latest it can have been
finished is when it first went into a label batch; that time it gets, and keeps. What was claimed is kept beside it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from pydantic import ValidationError

from flows.annotation.providers.base import RawAnnotation
from flows.annotation.validation.context import ValidationContext
from flows.annotation.validation.rejection import InvalidAnnotation
from flows.annotation.validation.resolve_conflicts import ExistingAnnotations, annotator_key
from tasks.data.importers.boxes import BoxProblem, validate_box
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import AnnotationTask, Box, LabeledImage, LabelStatus
from tasks.evaluation.matching import drop_duplicates

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REPR_LENGTH = 100


def parse_annotation(raw: RawAnnotation, context: ValidationContext) -> tuple[LabeledImage, int]:
    """The label, and how many boxes were left out because they were there already.

    Raises:
        Unacceptable: something about it cannot be trusted.
    """
    if raw.get("problem"):  # the provider itself could make no answer of it
        raise InvalidAnnotation(str(raw["problem"]))
    task = context.tasks.get(_image_id(raw))
    if task is None:
        raise InvalidAnnotation(f"image_id is {_repr(raw.get('image_id'))}, expected one of this batch")
    _check_sha256(raw.get("image_sha256"), task)
    status = raw.get("status")
    if status not in get_args(LabelStatus):
        raise InvalidAnnotation(f"status is {_repr(status)}, expected one of {list(get_args(LabelStatus))}")
    raw_boxes = _validate_boxes(str(status), raw.get("boxes"))
    boxes = [_parse_box(box, task, context) for box in raw_boxes]
    unique_boxes = drop_duplicates(boxes, context.limits.duplicate_iou_threshold)
    return _labeled_image(raw, context.batch, task, unique_boxes), len(boxes) - len(unique_boxes)


def is_identical(existing: LabeledImage, raw: RawAnnotation, batch: int) -> bool:
    """Whether a label is what an answer says, so that checking it again would find nothing to change.

    Args:
        old: from a label batch.
        answer: to an image of the same id.
        batch: of the delivery it answers.
    """
    header = tuple(raw.get(key) for key in ("annotator", "finished_at", "status"))
    if (
        existing.offered_batch,
        existing.annotator,
        existing.reported_finished_at or existing.finished_at,
        existing.status,
    ) != (batch, *header):
        return False
    raw_boxes = raw.get("boxes")
    if raw.get("problem") or not isinstance(raw_boxes, list | tuple) or len(raw_boxes) != len(existing.boxes):
        return False
    return all(_is_same_box(box, raw_box) for box, raw_box in zip(existing.boxes, raw_boxes, strict=True))


def _is_same_box(old: Box, raw_box: Any) -> bool:
    if not isinstance(raw_box, Mapping) or raw_box.get("rotation_deg") not in (None, 0):
        return False
    corners = raw_box.get("xyxy_px")
    return (
        raw_box.get("category") == old.category and isinstance(corners, list | tuple) and [*corners] == [*old.xyxy_px]
    )


def _image_id(raw: RawAnnotation) -> str:
    image_id = raw.get("image_id")
    return image_id if isinstance(image_id, str) else ""


def _check_sha256(sha256: Any, task: AnnotationTask) -> None:
    """An image's id is the beginning of the digest of its bytes, so no file need be opened."""
    if sha256 is None:
        return
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidAnnotation(f"image_sha256 is {_repr(sha256)}, expected 64 hex digits, or nothing")
    if image_id_from_sha256(sha256) != task.image_id:
        expected = "expected those of the pool's image"
        raise InvalidAnnotation(
            f"the bytes that were labeled have SHA-256 {sha256[:16]}..., {expected} {task.image_id}..."
        )


def _validate_boxes(status: str, boxes: Any) -> Sequence[Any]:
    raw_boxes = [] if status == "skipped" else boxes  # what is half drawn on an image that was given up says nothing
    if not isinstance(raw_boxes, list | tuple):
        raise InvalidAnnotation(f"boxes is {_repr(raw_boxes)}, expected a list")
    if (status == "labeled") != bool(raw_boxes):
        raise InvalidAnnotation(
            f"status is {status!r} with {len(raw_boxes)} boxes, expected boxes exactly on labeled images"
        )
    return raw_boxes


def _parse_box(box: Any, task: AnnotationTask, context: ValidationContext) -> Box:
    if not isinstance(box, Mapping):
        raise InvalidAnnotation(f"a box is {_repr(box)}, expected category and xyxy_px")
    category, corners = box.get("category"), box.get("xyxy_px")
    if category not in context.classes:
        raise InvalidAnnotation(f"class is {_repr(category)}, expected one of {list(context.classes)}")
    rotation = box.get("rotation_deg")
    if rotation is not None and rotation != 0:
        expected = "expected 0: only boxes along the image's sides can be trained on"
        raise InvalidAnnotation(f"rotation_deg of a box of {category} is {_repr(rotation)}, {expected}")
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners or ())
    except (TypeError, ValueError, OverflowError):
        raise InvalidAnnotation(f"a box of {category} is {_repr(corners)}, expected four numbers") from None
    min_box_side_px = context.limits.min_box_side_px
    try:
        return validate_box(
            str(category), (x1, y1, x2, y2), task.width_px, task.height_px, min_box_side_px=min_box_side_px
        )[0]
    except BoxProblem as problem:
        raise InvalidAnnotation(str(problem)) from None


def _labeled_image(raw: RawAnnotation, batch: int, task: AnnotationTask, boxes: tuple[Box, ...]) -> LabeledImage:
    annotator = raw.get("annotator")
    if not isinstance(annotator, str) or not annotator.strip():
        raise InvalidAnnotation(f"annotator is {_repr(annotator)}, expected who it was")
    preannotations = tuple(Box(category=found.category, xyxy_px=found.xyxy_px) for found in task.predictions)
    try:
        return LabeledImage(
            image_id=task.image_id,
            status=raw["status"],
            boxes=boxes,
            annotator=annotator,
            finished_at=_timestamp(raw.get("finished_at")),
            seconds_spent=_duration(raw.get("seconds_spent")),
            offered_batch=batch,
            preannotations=preannotations,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidAnnotation(f"{first['loc'][0]} is {_repr(first['input'])}, expected {first['msg']}") from None


def _timestamp(text: Any) -> str:
    try:
        finished_at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InvalidAnnotation(f"finished_at is {_repr(text)}, expected ISO 8601 with time zone") from None
    if finished_at.tzinfo is None:
        raise InvalidAnnotation(f"finished_at is {_repr(text)}, expected a time zone")
    return str(text)


def _duration(spent: Any) -> float | None:
    if spent is None:
        return None
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < math.inf:
        raise InvalidAnnotation(f"seconds_spent is {_repr(spent)}, expected a number of at least 0, or nothing")
    return float(spent)


def _repr(value: Any) -> str:
    """A value from outside in a message: no longer than somebody reads."""
    text = repr(value)
    return text if len(text) <= _MAX_REPR_LENGTH else f"{text[:_MAX_REPR_LENGTH]}..."


def clamp_future_timestamp(
    label: LabeledImage, context: ValidationContext, existing: ExistingAnnotations
) -> LabeledImage:
    """The label, finished at a time that has come.

    Args:
        label: with the time its provider tells.
        offer: says when the answer was collected, and how far a clock may be ahead.
        known: answers so far; one that claimed the same time before keeps what it got then, also when that time comes.
    """
    reported = label.finished_at
    previous = [old for old in existing.get(label.image_id, ()) if annotator_key(old) == annotator_key(label)]
    clamped = next((old.finished_at for old in previous if old.reported_finished_at == reported), None)
    if clamped is None:
        latest = context.collected_at + timedelta(minutes=context.limits.max_clock_skew_minutes)
        if datetime.fromisoformat(reported) <= latest:
            return label
        clamped = context.collected_at.isoformat(timespec="seconds")
    return label.model_copy(update={"finished_at": clamped, "reported_finished_at": reported})
