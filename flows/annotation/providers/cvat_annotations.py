"""Convert tasks of the manifest to labels, boxes and tags of CVAT, and the annotations of a finished job back.

Each image carries a tag that says why it was selected and which teacher has drawn its boxes. It is written with the
boxes in one call, so an image has both or neither. Another tag is what an annotator sets to skip an image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.annotation.providers.base import AnnotationBatch, RawAnnotation, to_raw_annotation
from tasks.data.formats.base import NO_CORNERS, ParsedBox, ParsedImage
from tasks.data.formats.decoding import shown, to_float, to_id
from tasks.data.formats.shapes import (
    ellipse_bounds,
    is_rectangle,
    is_upright,
    point_bounds,
    rotated_bounds,
    to_points,
)
from tasks.data.schemas import AnnotationTask, Prediction

ABOUT, SKIP = "why this image", "skip this image"
"""Names of the two labels of type tag."""
_ABOUT_ATTRIBUTES, _BOX_ATTRIBUTES = ("about", "teacher"), ("score", "note")
_BOX_KINDS = ("rectangle", "any")
"""Types of labels that a box may have."""
_SHORT_DIGEST = 12
_EXPORT = "annotations of CVAT"
_NUM_MASK_CORNERS = 4


@dataclass(frozen=True)
class Label:
    """A label of the campaign's project."""

    number: int
    name: str
    kind: str
    """``rectangle``, ``tag``, ``any`` or another type of CVAT."""
    attributes: Mapping[str, int]
    """Numbers of its attributes, by name."""


@dataclass(frozen=True)
class Frame:
    """One image of a job."""

    number: int
    """Position in the CVAT task, from 0."""
    image_id: str
    width_px: int | None
    height_px: int | None
    is_deleted: bool = False
    """Whether the annotators do not see it any more."""


def label_specs(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the labels of a new project: a rectangle for each class, and the two tags."""
    boxes = [{"name": name, "type": "rectangle", "attributes": _texts(_BOX_ATTRIBUTES)} for name in classes]
    about = {"name": ABOUT, "type": "tag", "attributes": _texts(_ABOUT_ATTRIBUTES)}
    return [*boxes, {"name": SKIP, "type": "tag", "attributes": []}, about]


def _texts(names: Sequence[str]) -> list[dict[str, Any]]:
    common = {"mutable": False, "input_type": "text", "values": [], "default_value": ""}
    return [{"name": name, **common} for name in names]


def labels_problem(labels: Sequence[Label], classes: Sequence[str]) -> str | None:
    """Return why boxes drawn with the labels of a project could not be read; None: they can.

    Teams may change colors, and add labels and attributes.
    """
    with_boxes = {label.name for label in labels if label.kind in _BOX_KINDS}
    tags = {label.name for label in labels if label.kind == "tag"}
    missing = [name for name in classes if name not in with_boxes] + [t for t in (ABOUT, SKIP) if t not in tags]
    if not missing:
        return None
    expected = f"a rectangle for each class of params.yaml, and the tags {ABOUT!r} and {SKIP!r}"
    return f"its labels lack {', '.join(map(repr, missing))}, expected {expected}"


def about(task: AnnotationTask, delivery: AnnotationBatch) -> str:
    """Say why an image was selected."""
    return f"Batch {delivery.batch}, rank {task.rank}: {task.reason}"


def to_annotations(
    tasks_by_frame: Mapping[int, AnnotationTask], delivery: AnnotationBatch, labels: Sequence[Label]
) -> dict[str, list[dict[str, Any]]]:
    """Build boxes and tags of some images of a job; the least sure box of an image comes first.

    Args:
        tasks_by_frame: by number of the frame.
        delivery: the batch they are offered in.
        labels: of the project, without a problem.
    """
    by_name = {label.name: label for label in labels}
    tags, shapes = [], []
    for frame, task in tasks_by_frame.items():
        texts = {"about": about(task, delivery), "teacher": _short_digest(task)}
        tags.append({**_header(by_name[ABOUT], frame, texts), "source": "auto"})
        for box in sorted(task.predictions, key=lambda found: -(found.doubt or 0.0)):
            shapes.append(_shape(box, by_name[box.category], frame))
    return {"tags": tags, "shapes": shapes}


def _shape(box: Prediction, label: Label, frame: int) -> dict[str, Any]:
    notes = [] if box.runner_up is None else [f"or {box.runner_up.category} ({box.runner_up.score:.2f})"]
    notes += [] if box.doubt is None else [f"doubt {box.doubt:.2f}"]
    texts = {"score": f"{box.score:.2f}", "note": ", ".join(notes)}
    drawn = {"type": "rectangle", "points": [float(corner) for corner in box.xyxy_px], "source": "auto"}
    return {**_header(label, frame, texts), **drawn, "score": box.score}


def _header(label: Label, frame: int, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return what boxes and tags have in common; an attribute that a team has deleted is left out."""
    attributes = [
        {"spec_id": label.attributes[name], "value": text} for name, text in texts.items() if name in label.attributes
    ]
    return {"label_id": label.number, "frame": frame, "attributes": attributes}


def with_other_frames(new: dict[str, list[dict[str, Any]]], old: Mapping[str, Any], frames: set[int]) -> dict[str, Any]:
    """Add the present boxes and tags of the frames that are not replaced.

    Args:
        new: of ``frames``.
        old: of the whole job, as CVAT returns them.
        frames: numbers of those that are replaced.
    """
    kept = {
        kind: [_without_id(item) for item in _items(old, kind) if item.get("frame") not in frames]
        for kind in ("tags", "shapes")
    }
    return {kind: [*kept[kind], *new[kind]] for kind in kept}


def _without_id(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "elements")}


def is_drawn_by(
    annotations: Mapping[str, Any], frame: int, task: AnnotationTask, delivery: AnnotationBatch, labels: Sequence[Label]
) -> bool:
    """Tell whether the annotators found the boxes of ``task``; False where nobody can know."""
    label = next((found for found in labels if found.name == ABOUT), None)
    if label is None or not set(_ABOUT_ATTRIBUTES) <= set(label.attributes):
        return False
    wanted = _header(label, frame, {"about": about(task, delivery), "teacher": _short_digest(task)})["attributes"]
    return any(
        tag.get("frame") == frame
        and tag.get("label_id") == label.number
        and all(attribute in _items(tag, "attributes") for attribute in wanted)
        for tag in _items(annotations, "tags")
    )


def is_blank(annotations: Mapping[str, Any]) -> bool:
    """Whether a job has no annotation of any kind, the tags of its images included."""
    return not any(_items(annotations, kind) for kind in ("tags", "shapes", "tracks"))


def parse_image(annotations: Mapping[str, Any], frame: Frame, labels: Sequence[Label], **fields: Any) -> RawAnnotation:
    """Return the answer to one image of a finished job.

    Args:
        annotations: of the job. Anything may be missing or wrong in them.
        frame: an image that the annotators could see.
        labels: of the project.
        fields: what the annotations do not say, such as ``finished_at``.
    """
    by_number = {label.number: label for label in labels}
    problem = _unreadable(annotations)
    tags = set(_tags(annotations, frame, by_number))
    boxes = tuple(_boxes(annotations, frame, by_number))
    is_skipped = SKIP in tags
    image = ParsedImage(
        name=frame.image_id,
        entry=_EXPORT,
        boxes=() if is_skipped else boxes,
        image_id=frame.image_id,
        width_px=frame.width_px,
        height_px=frame.height_px,
        status="skipped" if is_skipped else "labeled" if boxes else "empty",
        problems=() if problem is None else (problem,),
    )
    return to_raw_annotation(image, **fields)


def _unreadable(annotations: Mapping[str, Any]) -> str | None:
    """Return why it is unknown which image an annotation of the job belongs to; None: it is known of all."""
    for kind in ("tags", "shapes", "tracks"):
        found = annotations.get(kind, [])
        if not isinstance(found, list):
            return f"{kind} of the job is {shown(found)}, expected a list"
        for position, item in enumerate(found):
            if not isinstance(item, Mapping) or not isinstance(to_id(item.get("frame")), int):
                return f"{kind}[{position}] of the job is {shown(item)}, expected an object with the number of a frame"
    return None


def _tags(annotations: Mapping[str, Any], frame: Frame, labels: Mapping[int, Label]) -> Iterator[str]:
    """Yield the names of an image's tags."""
    for tag in _items(annotations, "tags"):
        number = to_id(tag.get("label_id"))
        if to_id(tag.get("frame")) == frame.number and isinstance(number, int) and number in labels:
            yield labels[number].name


def _boxes(annotations: Mapping[str, Any], frame: Frame, labels: Mapping[int, Label]) -> Iterator[ParsedBox]:
    for position, shape in enumerate(_items(annotations, "shapes")):
        if to_id(shape.get("frame")) == frame.number:
            yield _box(shape, labels, f"shapes[{position}]")
    for position, track in enumerate(_items(annotations, "tracks")):
        first = to_id(track.get("frame"))
        if isinstance(first, int) and first <= frame.number:  # it goes on to the last image of the job
            problem = "the object is a track over several images, expected a shape on each"
            yield ParsedBox(None, NO_CORNERS, entry=f"tracks[{position}]", problem=problem)


def _box(shape: Mapping[str, Any], labels: Mapping[int, Label], entry: str) -> ParsedBox:
    number = to_id(shape.get("label_id"))
    label = labels.get(number) if isinstance(number, int) else None
    if label is None:
        problem = f"the label is number {shown(shape.get('label_id'))}, expected one of the project"
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    found = _bounds(shape, label.name, entry)
    return found if isinstance(found, ParsedBox) else ParsedBox(label.name, NO_CORNERS, entry=entry, problem=found)


def _bounds(shape: Mapping[str, Any], category: str, entry: str) -> ParsedBox | str:
    """Return the box of a shape, or the problem with it."""
    kind, points = shape.get("type"), shape.get("points")
    angle = to_float(shape.get("rotation") or 0)
    if angle is None or not math.isfinite(angle):
        return f"rotation is {shown(shape.get('rotation'))}, expected degrees"
    if kind == "polygon":
        outline = to_points(points)
        if outline is None:
            return f"the points of a polygon are {shown(points)}, expected x, y, ... of three or more"
        drawn = "box" if is_rectangle(outline) else "polygon"
        return ParsedBox(category, point_bounds(outline), drawn, False, entry=entry)  # type: ignore[arg-type]
    numbers = [to_float(value) for value in points] if isinstance(points, list) else []
    if kind == "mask":
        numbers = numbers[-_NUM_MASK_CORNERS:]  # after the run lengths: left, top, right, bottom
    if kind not in ("rectangle", "mask", "ellipse"):
        return f"the shape is {shown(kind)}, expected a rectangle"
    values = [number for number in numbers if number is not None and math.isfinite(number)]
    if len(values) != _NUM_MASK_CORNERS or len(values) != len(numbers):
        return f"the points of a {kind} are {shown(points)}, expected four numbers"
    first, second, third, fourth = values
    if kind == "mask":
        return ParsedBox(category, (first, second, third + 1, fourth + 1), "rle", False, entry=entry)
    if kind == "ellipse":  # its center, then the right end and the upper end of its axes
        bounds = ellipse_bounds(first, second, third - first, second - fourth, angle)
        return ParsedBox(category, bounds, "ellipse", False, entry=entry)
    bounds = rotated_bounds((first, second, third, fourth), angle)
    if is_upright(angle):
        return ParsedBox(category, bounds, entry=entry)
    return ParsedBox(category, bounds, "rotated", False, angle, entry=entry)


def _items(container: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the objects of a list, and nothing else that may be in it."""
    found = container.get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _short_digest(task: AnnotationTask) -> str:
    return task.model_digest[:_SHORT_DIGEST]
