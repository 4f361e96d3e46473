"""Validate one annotation against its task: schema, image bytes and size, classes, boxes, plausibility and time.

An annotation that is not valid becomes a ``Rejection``: the reason, and the annotation as it was returned.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import ValidationError

from flows.annotation.batches import offered_tasks
from flows.annotation.providers.base import AnnotationBatch, RawAnnotation
from tasks.data.box_rules import BoxResult, BoxRules, check_boxes
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import MAX_SECONDS_SPENT, AnnotationTask, Box, LabeledImage, LabelStatus, Quarantined
from tasks.params import Params
from tasks.params.annotation import LabelValidationParams
from tasks.runtime.formatting import escape_control_characters
from tasks.storage import files

RejectionKind = Literal["refused", "suspicious", "note"]
"""``refused``: invalid. ``suspicious``: valid but implausible; a person may approve it. ``note``: needs no action; a
part of an accepted annotation was left out, or its annotator has changed it since."""
_MAX_ID_LENGTH = 100
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REPR_LENGTH = 100
_MAX_REASON_LENGTH = 1200
_MAX_ANNOTATOR_LENGTH = 200
_FIRST_YEAR = 1990
_MAX_JSON_INT = 1 << 63
_SHAPES = {
    "rotated": "a rotated box",
    "polygon": "a polygon",
    "rle": "a mask",
    "ellipse": "an ellipse",
}


@dataclass(frozen=True)
class ValidationContext:
    """The tasks of one delivery, and the limits of ``label_validation``."""

    batch: int
    tasks: Mapping[str, AnnotationTask]
    """By image id."""
    classes: Sequence[str]
    limits: LabelValidationParams
    is_teacher_trusted: bool
    """Whether the teacher that made the pre-annotations was accurate enough to question an annotation."""
    collected_at: datetime
    """With time zone."""
    approved: frozenset[str] = frozenset()
    """Digests of implausible annotations that a person has approved (``rejection.annotation_digest``)."""

    @cached_property
    def max_preannotated(self) -> int:
        """Largest number of pre-annotated boxes on any image of the delivery."""
        return max((len(task.predictions) for task in self.tasks.values()), default=0)


def read_validation_context(
    workspace: Workspace,
    params: Params,
    delivery: AnnotationBatch,
    collected_at: datetime,
    approved: frozenset[str],
) -> ValidationContext:
    """Read the manifest of a delivery and the accuracy of the teacher behind it.

    Args:
        workspace: of the campaign.
        params: classes and limits.
        delivery: the delivery to validate annotations of.
        collected_at: time of the collection, with time zone.
        approved: digests of implausible annotations that a person has approved.

    Raises:
        UserError: the manifest of the delivery, or the ledger of its round, is missing or broken.
    """
    tasks = offered_tasks(delivery)
    return ValidationContext(
        batch=delivery.batch,
        tasks={task.image_id: task for task in tasks},
        classes=params.classes,
        limits=params.label_validation,
        is_teacher_trusted=_teacher_ap50(workspace, delivery.batch - 1) >= params.label_validation.min_teacher_ap50,
        collected_at=collected_at,
        approved=approved,
    )


def _teacher_ap50(workspace: Workspace, round_number: int) -> float:
    """AP50 of the round's teacher on the validation set, in percent; 0 where none was measured."""
    path = workspace.ledger(round_number)
    ap50 = files.read_json(path)["metrics"]["teacher"]["AP50"] if path.is_file() else None
    return 0.0 if ap50 is None else float(ap50)


@dataclass(frozen=True)
class Rejection:
    """One rejected annotation, or a note about an accepted one."""

    kind: RejectionKind
    batch: int
    """Number of the delivery that the annotation belongs to."""
    quarantined: Quarantined
    raw_annotation: Mapping[str, Any]
    """The annotation as returned, converted to JSON values."""


class InvalidAnnotation(ValueError):
    """Why an annotation is refused: ``<what> is <value>, expected <allowed>``."""

    kind: RejectionKind = "refused"


class ImplausibleAnnotation(InvalidAnnotation):
    """Why a valid annotation needs a person's approval."""

    kind = "suspicious"


def reject(kind: RejectionKind, batch: int, reason: str, raw: RawAnnotation) -> Rejection:
    """Build a rejection; the annotation is converted to JSON values.

    The reason may quote what the annotation holds: it is cut to a length and written without control characters.
    """
    raw_json = to_json_value(raw)
    item = f"image {str(raw_json.get('image_id'))[:_MAX_ID_LENGTH]}"
    one_line = escape_control_characters(_utf8_text(reason[:_MAX_REASON_LENGTH]))
    quarantined = Quarantined(item=item, reason=one_line[:_MAX_REASON_LENGTH])  # an escape is longer than its character
    return Rejection(kind, batch, quarantined, raw_json)


def annotation_digest(batch: int, raw: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an annotation of a delivery, 64 hex digits; equal however often it is returned."""
    return files.sha256_json([batch, to_json_value(raw)])


def to_json_value(value: Any) -> Any:
    """Convert any value to what JSON in UTF-8 can hold; NaN, infinity and lone surrogates become text."""
    if isinstance(value, Mapping):
        return {_utf8_text(str(key)): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, str):
        return _utf8_text(value)
    if isinstance(value, int) and not -_MAX_JSON_INT <= value < _MAX_JSON_INT:
        return _repr(value)
    if value is None or isinstance(value, bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else _utf8_text(repr(value))


def _utf8_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_annotation(raw: RawAnnotation, context: ValidationContext) -> tuple[LabeledImage, int]:
    """Validate an annotation.

    Returns:
        The label, and the number of duplicate boxes that were left out.

    Raises:
        InvalidAnnotation: the first thing that is wrong.
    """
    problem = raw.get("problem")
    if problem:  # the provider could not read it, or an annotator's own field has this name
        text = problem if isinstance(problem, str) else _repr(problem)
        raise InvalidAnnotation(text)
    task = context.tasks.get(_image_id(raw))
    if task is None:
        raise InvalidAnnotation(f"image_id is {_repr(raw.get('image_id'))}, expected one of this batch")
    _check_sha256(raw.get("image_sha256"), task)
    status = raw.get("status")
    if status not in get_args(LabelStatus):
        raise InvalidAnnotation(f"status is {_repr(status)}, expected one of {list(get_args(LabelStatus))}")
    raw_boxes = _list_boxes(str(status), raw.get("boxes"))
    if status != "skipped":
        _check_size(raw.get("image_size_px"), task)
    regions = [box for box in raw_boxes if _is_crowd(box)]
    boxes, num_duplicates = _parse_boxes([box for box in raw_boxes if not _is_crowd(box)], task, context)
    crowd_regions, num_duplicate_regions = _parse_boxes(regions, task, context)
    label = _labeled_image(raw, context.batch, task, boxes, crowd_regions)
    return label, num_duplicates + num_duplicate_regions


def is_identical(existing: LabeledImage, raw: RawAnnotation, batch: int) -> bool:
    """Whether an annotation is the one that a label was made from, so that it need not be validated again.

    Args:
        existing: label from a label batch.
        raw: annotation of the same image.
        batch: number of the delivery it belongs to.
    """
    header = tuple(raw.get(key) for key in ("annotator", "finished_at", "status"))
    finished_at = existing.reported_finished_at or existing.finished_at
    if (existing.offered_batch, existing.annotator, finished_at, existing.status) != (batch, *header):
        return False
    raw_boxes = raw.get("boxes")
    if raw.get("problem") or not isinstance(raw_boxes, list | tuple) or len(raw_boxes) != existing.num_marked:
        return False
    found = [[box for box in raw_boxes if _is_crowd(box) is crowd] for crowd in (False, True)]
    return all(
        len(boxes) == len(raws) and all(map(_is_same_box, boxes, raws))
        for boxes, raws in zip((existing.boxes, existing.crowd_regions), found, strict=True)
    )


def _is_crowd(raw_box: Any) -> bool:
    """Whether a box is a region of several objects; a mark that is no truth value makes its box invalid elsewhere."""
    return isinstance(raw_box, Mapping) and raw_box.get("is_crowd") is True


def _is_same_box(box: Box, raw_box: Any) -> bool:
    if not isinstance(raw_box, Mapping) or _shape_problem(raw_box) is not None:
        return False
    corners = raw_box.get("xyxy_px")
    return (
        raw_box.get("category") == box.category and isinstance(corners, list | tuple) and [*corners] == [*box.xyxy_px]
    )


def _image_id(raw: RawAnnotation) -> str:
    image_id = raw.get("image_id")
    return image_id if isinstance(image_id, str) else ""


def _check_sha256(sha256: Any, task: AnnotationTask) -> None:
    """Compare with the image id, which is the beginning of the digest; no file is opened."""
    if sha256 is None:
        return
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidAnnotation(f"image_sha256 is {_repr(sha256)}, expected 64 hex digits or none")
    if image_id_from_sha256(sha256) != task.image_id:
        raise InvalidAnnotation(
            f"image_sha256 is {sha256[:16]}..., expected that of the pool's image, {task.image_id}..."
        )


def _check_size(size_px: Any, task: AnnotationTask) -> None:
    """Boxes are in pixels, or in fractions, of the image that the annotator saw; of another one they mean nothing."""
    expected = (task.width_px, task.height_px)
    if size_px is None:
        return
    if not isinstance(size_px, list | tuple) or len(size_px) != 2:
        raise InvalidAnnotation(f"image_size_px is {_repr(size_px)}, expected width and height")
    width_px, height_px = size_px
    if (width_px, height_px) == expected:
        return
    found = f"{_repr(width_px)} x {_repr(height_px)} px"
    hint = " (was it labeled before the turn that its EXIF tag asks for?)" if expected == (height_px, width_px) else ""
    raise InvalidAnnotation(
        f"the size of the labeled image is {found}, expected {expected[0]} x {expected[1]} px{hint}"
    )


def _list_boxes(status: str, boxes: Any) -> Sequence[Any]:
    raw_boxes = [] if status == "skipped" else boxes  # boxes on a skipped image are unfinished
    if not isinstance(raw_boxes, list | tuple):
        raise InvalidAnnotation(f"boxes is {_repr(raw_boxes)}, expected a list")
    if (status == "labeled") != bool(raw_boxes):
        raise InvalidAnnotation(
            f"status is {status!r} with {len(raw_boxes)} boxes, expected boxes exactly on labeled images"
        )
    return raw_boxes


def _parse_boxes(
    raw_boxes: Sequence[Any], task: AnnotationTask, context: ValidationContext
) -> tuple[tuple[Box, ...], int]:
    """Return the boxes, clipped to the image, and the number of duplicates left out."""
    limits = context.limits
    if len(raw_boxes) > limits.max_boxes_per_image:
        expected = f"at most label_validation.max_boxes_per_image ({limits.max_boxes_per_image})"
        raise InvalidAnnotation(f"the number of boxes is {len(raw_boxes)}, expected {expected}")
    parsed = [_category_and_corners(box, context.classes) for box in raw_boxes]
    categories, corners_N4 = [category for category, _ in parsed], [corners for _, corners in parsed]
    rules = BoxRules(min_side_px=limits.min_box_side_px, duplicate_iou=limits.duplicate_iou_threshold)
    checked = check_boxes(corners_N4, categories, task.width_px, task.height_px, rules)
    boxes: list[Box] = []
    for row, category in enumerate(categories):
        problem = checked.message(row)
        if problem is None:
            x1, y1, x2, y2 = checked.xyxy_N4[row].tolist()
            boxes.append(Box(category=category, xyxy_px=(x1, y1, x2, y2)))
        elif checked.result_N[row] != BoxResult.DUPLICATE:
            raise InvalidAnnotation(problem)
    return tuple(boxes), len(categories) - len(boxes)


def _category_and_corners(box: Any, classes: Sequence[str]) -> tuple[str, tuple[float, float, float, float]]:
    if not isinstance(box, Mapping):
        raise InvalidAnnotation(f"a box is {_repr(box)}, expected category and xyxy_px")
    category, corners = box.get("category"), box.get("xyxy_px")
    if not isinstance(category, str) or category not in classes:
        raise InvalidAnnotation(f"class is {_repr(category)}, expected one of {list(classes)}")
    if box.get("is_crowd") not in (None, False, True):
        raise InvalidAnnotation(f"is_crowd of a box of {category} is {_repr(box['is_crowd'])}, expected true or false")
    problem = _shape_problem(box)
    if problem is not None:
        raise InvalidAnnotation(problem)
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners or ())
    except (TypeError, ValueError, OverflowError):
        raise InvalidAnnotation(f"a box of {category} is {_repr(corners)}, expected four numbers") from None
    return category, (x1, y1, x2, y2)


def _shape_problem(box: Mapping[str, Any]) -> str | None:
    """Only boxes along the image's sides can be trained on; the bounding box of another shape is not its outline."""
    shape, rotation_deg = box.get("shape"), box.get("rotation_deg")
    if shape not in (None, "box"):
        stated = _SHAPES.get(shape, _repr(shape)) if isinstance(shape, str) else _repr(shape)
        return f"the shape of an object of {_repr(box.get('category'))} is {stated}, expected a box"
    if rotation_deg not in (None, 0):
        return f"rotation_deg of a box of {box.get('category')} is {_repr(rotation_deg)}, expected 0"
    return None


def _labeled_image(
    raw: RawAnnotation, batch: int, task: AnnotationTask, boxes: tuple[Box, ...], crowd_regions: tuple[Box, ...]
) -> LabeledImage:
    annotator = raw.get("annotator")
    if not isinstance(annotator, str) or not annotator.strip():
        raise InvalidAnnotation(f"annotator is {_repr(annotator)}, expected a name")
    if len(annotator) > _MAX_ANNOTATOR_LENGTH or not annotator.isprintable():
        expected = f"at most {_MAX_ANNOTATOR_LENGTH} printable characters"
        raise InvalidAnnotation(f"annotator is {_repr(annotator)}, expected {expected}")
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
            crowd_regions=crowd_regions,
            checks_batch=task.checks_batch,
            is_honeypot=task.is_honeypot,
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
    if not _FIRST_YEAR <= finished_at.year < datetime.max.year:  # a time zone moves the last year out of range
        raise InvalidAnnotation(f"finished_at is {_repr(text)}, expected a year from {_FIRST_YEAR} on")
    return str(text)


def _duration(seconds: Any) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS_SPENT:
        expected = f"a number from 0 to {MAX_SECONDS_SPENT:.0f} (30 days) or none"
        raise InvalidAnnotation(f"seconds_spent is {_repr(seconds)}, expected {expected}")
    return float(seconds)


def _repr(value: Any) -> str:
    """Format a value from outside for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = "a number of thousands of digits"
    return text if len(text) <= _MAX_REPR_LENGTH else f"{text[:_MAX_REPR_LENGTH]}..."


def require_plausible(label: LabeledImage, context: ValidationContext) -> None:
    """Refuse an annotation that differs from the teacher's pre-annotations in one of two extreme ways.

    They indicate an untouched page that was submitted, or a tool that multiplied boxes. Ordinary differences are what
    labels are for, so only a teacher that was accurate on the validation set is compared with.

    Raises:
        ImplausibleAnnotation: a person should approve the annotation.
    """
    if not context.is_teacher_trusted:
        return
    limits, predictions = context.limits, context.tasks[label.image_id].predictions
    num_confident = sum(found.score >= limits.confident_score for found in predictions)
    if label.status == "empty" and num_confident >= limits.min_confident_boxes:
        checks_batch = context.tasks[label.image_id].checks_batch
        confident = f"the teacher detected {num_confident} boxes with a score of at least {limits.confident_score:g}"
        labeled = f"the label of batch {checks_batch} and the teacher have {num_confident} boxes"
        claim = confident if checks_batch is None else labeled
        raise ImplausibleAnnotation(
            f"status is 'empty' where {claim}, expected fewer than {limits.min_confident_boxes} such boxes"
        )
    max_boxes = limits.max_box_count_ratio * max(context.max_preannotated, 1)
    if len(label.boxes) > max_boxes:
        limit = f"{limits.max_box_count_ratio:g} times the most pre-annotated boxes on any image of the batch"
        raise ImplausibleAnnotation(
            f"the number of boxes is {len(label.boxes)}, expected at most {max_boxes:g}: {limit}"
        )
