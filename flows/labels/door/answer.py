"""One answer held against its task: schema, classes, boxes, and the bytes it was made on."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from pydantic import ValidationError

from flows.labels.door.offer import Offer
from flows.labels.door.refusal import Unacceptable
from flows.labels.providers.base import Returned
from tasks.contracts import Box, HandoffTask, LabeledImage, Status
from tasks.importers.boxes import BoxProblem, checked_box
from tasks.matching import without_doubles
from tasks.paths import image_id_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 100


def checked_answer(answer: Returned, offer: Offer) -> tuple[LabeledImage, int]:
    """The label, and how many boxes were left out because they were there already.

    Raises:
        Unacceptable: something about it cannot be trusted.
    """
    if answer.get("problem"):  # the provider itself could make no answer of it
        raise Unacceptable(str(answer["problem"]))
    task = offer.tasks.get(_image_id(answer))
    if task is None:
        raise Unacceptable(f"image_id is {_shown(answer.get('image_id'))}, expected one of this batch")
    _check_bytes(answer.get("image_sha256"), task)
    status = answer.get("status")
    if status not in get_args(Status):
        raise Unacceptable(f"status is {_shown(status)}, expected one of {list(get_args(Status))}")
    drawn = _drawn(str(status), answer.get("boxes"))
    boxes = [_box(box, task, offer) for box in drawn]
    kept = without_doubles(boxes, offer.rules.duplicate_iou)
    return _label(answer, offer.batch, task, kept), len(boxes) - len(kept)


def is_word_for_word(old: LabeledImage, answer: Returned, batch: int) -> bool:
    """Whether a label is what an answer says, so that checking it again would find nothing to change.

    Args:
        old: from a label batch.
        answer: to an image of the same id.
        batch: of the delivery it answers.
    """
    said = tuple(answer.get(key) for key in ("annotator", "finished_at", "status"))
    if (old.offered_in, old.annotator, old.claimed_at or old.finished_at, old.status) != (batch, *said):
        return False
    drawn = answer.get("boxes")
    if answer.get("problem") or not isinstance(drawn, list | tuple) or len(drawn) != len(old.boxes):
        return False
    return all(_is_same_box(box, one) for box, one in zip(old.boxes, drawn, strict=True))


def _is_same_box(old: Box, drawn: Any) -> bool:
    if not isinstance(drawn, Mapping) or drawn.get("rotation_deg") not in (None, 0):
        return False
    corners = drawn.get("xyxy_px")
    return drawn.get("category") == old.category and isinstance(corners, list | tuple) and [*corners] == [*old.xyxy_px]


def _image_id(answer: Returned) -> str:
    image_id = answer.get("image_id")
    return image_id if isinstance(image_id, str) else ""


def _check_bytes(sha256: Any, task: HandoffTask) -> None:
    """An image's id is the beginning of the digest of its bytes, so no file need be opened."""
    if sha256 is None:
        return
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise Unacceptable(f"image_sha256 is {_shown(sha256)}, expected 64 hex digits, or nothing")
    if image_id_of(sha256) != task.image_id:
        expected = "expected those of the pool's image"
        raise Unacceptable(f"the bytes that were labeled have SHA-256 {sha256[:16]}..., {expected} {task.image_id}...")


def _drawn(status: str, boxes: Any) -> Sequence[Any]:
    drawn = [] if status == "skipped" else boxes  # what is half drawn on an image that was given up says nothing
    if not isinstance(drawn, list | tuple):
        raise Unacceptable(f"boxes is {_shown(drawn)}, expected a list")
    if (status == "labeled") != bool(drawn):
        raise Unacceptable(f"status is {status!r} with {len(drawn)} boxes, expected boxes exactly on labeled images")
    return drawn


def _box(box: Any, task: HandoffTask, offer: Offer) -> Box:
    if not isinstance(box, Mapping):
        raise Unacceptable(f"a box is {_shown(box)}, expected category and xyxy_px")
    category, corners = box.get("category"), box.get("xyxy_px")
    if category not in offer.classes:
        raise Unacceptable(f"class is {_shown(category)}, expected one of {list(offer.classes)}")
    rotation = box.get("rotation_deg")
    if rotation is not None and rotation != 0:
        expected = "expected 0: only boxes along the image's sides can be trained on"
        raise Unacceptable(f"rotation_deg of a box of {category} is {_shown(rotation)}, {expected}")
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners or ())
    except (TypeError, ValueError, OverflowError):
        raise Unacceptable(f"a box of {category} is {_shown(corners)}, expected four numbers") from None
    least = offer.rules.min_side_px
    try:
        return checked_box(str(category), (x1, y1, x2, y2), task.width_px, task.height_px, min_side_px=least)[0]
    except BoxProblem as problem:
        raise Unacceptable(str(problem)) from None


def _label(answer: Returned, batch: int, task: HandoffTask, boxes: tuple[Box, ...]) -> LabeledImage:
    annotator = answer.get("annotator")
    if not isinstance(annotator, str) or not annotator.strip():
        raise Unacceptable(f"annotator is {_shown(annotator)}, expected who it was")
    predrawn = tuple(Box(category=found.category, xyxy_px=found.xyxy_px) for found in task.predictions)
    try:
        return LabeledImage(
            image_id=task.image_id,
            status=answer["status"],
            boxes=boxes,
            annotator=annotator,
            finished_at=_time(answer.get("finished_at")),
            seconds_spent=_seconds(answer.get("seconds_spent")),
            offered_in=batch,
            predrawn=predrawn,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Unacceptable(f"{first['loc'][0]} is {_shown(first['input'])}, expected {first['msg']}") from None


def _time(text: Any) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise Unacceptable(f"finished_at is {_shown(text)}, expected ISO 8601 with time zone") from None
    if moment.tzinfo is None:
        raise Unacceptable(f"finished_at is {_shown(text)}, expected a time zone")
    return str(text)


def _seconds(spent: Any) -> float | None:
    if spent is None:
        return None
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < math.inf:
        raise Unacceptable(f"seconds_spent is {_shown(spent)}, expected a number of at least 0, or nothing")
    return float(spent)


def _shown(value: Any) -> str:
    """A value from outside in a message: no longer than somebody reads."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
