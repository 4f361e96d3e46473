"""What comes back from annotators, checked before it becomes source data. Nothing is dropped in silence.

A refused box takes its image with it: trained on as if it were whole, the image would teach that the object
is background. The image stays in the pool and is offered again. Only a box drawn twice is corrected here.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from pydantic import ValidationError

from flows.providers.base import Returned
from tasks import files
from tasks.contracts import Box, HandoffTask, LabeledImage, Quarantined, Status
from tasks.importers.boxes import BoxProblem, checked_box
from tasks.paths import Workspace


@dataclass(frozen=True)
class Refusal:
    """One thing set aside, with what came in."""

    quarantined: Quarantined
    returned: Mapping[str, Any]


@dataclass(frozen=True)
class Admitted:
    """A collection after the check, sorted by image id."""

    images: tuple[LabeledImage, ...]
    refusals: tuple[Refusal, ...]


class _Problem(ValueError):
    """Why an image is refused."""


def admit(
    returned: Sequence[Returned],
    *,
    batch: int,
    offered: Sequence[HandoffTask],
    classes: Collection[str],
    known: Collection[str],
) -> Admitted:
    """Split what came back into labels and refusals.

    Args:
        returned: as the provider gave it; the first answer to an image counts.
        batch: number of the delivery.
        offered: its tasks.
        classes: class names of params.yaml.
        known: ids of images that earlier batches have labels for.
    """
    tasks = {task.image_id: task for task in offered}
    images: dict[str, LabeledImage] = {}
    refusals: list[Refusal] = []
    for answer in returned:
        image_id = str(answer.get("image_id"))
        try:
            if image_id not in tasks:
                raise _Problem(f"image_id is {image_id[:100]!r}, expected one of this batch")
            if image_id in known:
                raise _Problem("the image has labels already, expected it once")
            if image_id in images:
                raise _Problem("the image came back twice, expected it once")
            images[image_id], doubled = _labeled(answer, batch, tasks[image_id], classes)
        except _Problem as problem:
            refusals.append(_refusal(image_id, str(problem), answer))
            continue
        if doubled:
            reason = f"{doubled} boxes are drawn twice, expected each once; the second was left out"
            refusals.append(_refusal(image_id, reason, answer))
    return Admitted(tuple(images[key] for key in sorted(images)), tuple(refusals))


def write_refusals(workspace: Workspace, batch: int, refusals: Sequence[Refusal]) -> None:
    """One file per refusal, named by its content: a second collection of the same batch adds nothing."""
    for refusal in refusals:
        content = {
            **refusal.quarantined.model_dump(),
            "batch": batch,
            "returned": _jsonable(refusal.returned),
        }
        name = f"batch-{batch:04d}-{files.sha256_json(content)[:12]}.json"
        files.write_json(workspace.quarantine / name, content)


def _labeled(answer: Returned, batch: int, task: HandoffTask, classes: Collection[str]) -> tuple[LabeledImage, int]:
    """The label, and how many boxes were left out because they were there already."""
    status = answer.get("status")
    if status not in get_args(Status):
        raise _Problem(f"status is {status!r}, expected one of {list(get_args(Status))}")
    drawn = [] if status == "skipped" else answer.get("boxes")
    if not isinstance(drawn, list | tuple):
        raise _Problem(f"boxes is {drawn!r}, expected a list")
    if (status == "labeled") != bool(drawn):
        raise _Problem(f"status is {status!r} with {len(drawn)} boxes, expected boxes exactly on labeled images")
    boxes = tuple(dict.fromkeys(_box(box, task, classes) for box in drawn))
    try:
        label = LabeledImage(
            image_id=task.image_id,
            status=status,
            boxes=boxes,
            annotator=answer.get("annotator"),
            finished_at=_time(answer.get("finished_at")),
            seconds_spent=_seconds(answer.get("seconds_spent")),
            offered_in=batch,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise _Problem(f"{first['loc'][0]} is {first['input']!r}, expected {first['msg']}") from None
    return label, len(drawn) - len(boxes)


def _box(box: Any, task: HandoffTask, classes: Collection[str]) -> Box:
    if not isinstance(box, Mapping):
        raise _Problem(f"a box is {box!r}, expected category and xyxy_px")
    category, corners = box.get("category"), box.get("xyxy_px")
    if category not in classes:
        raise _Problem(f"class is {category!r}, expected one of {list(classes)}")
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners or ())
    except (TypeError, ValueError):
        raise _Problem(f"a box of {category} is {corners!r}, expected four numbers") from None
    try:
        return checked_box(str(category), (x1, y1, x2, y2), task.width_px, task.height_px)[0]
    except BoxProblem as problem:
        raise _Problem(str(problem)) from None


def _time(text: Any) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise _Problem(f"finished_at is {text!r}, expected ISO 8601 with time zone") from None
    if moment.tzinfo is None:
        raise _Problem(f"finished_at is {text!r}, expected a time zone")
    return str(text)


def _seconds(spent: Any) -> float | None:
    if spent is None:
        return None
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < math.inf:
        raise _Problem(f"seconds_spent is {spent!r}, expected a number of at least 0, or nothing")
    return float(spent)


def _refusal(image_id: str, reason: str, answer: Returned) -> Refusal:
    return Refusal(Quarantined(where=f"image {image_id[:100]}", reason=reason), answer)


def _jsonable(value: Any) -> Any:
    """What came in, as far as JSON can say it; NaN is no JSON."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else repr(value)
