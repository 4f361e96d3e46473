"""Read and write augmented manifests of Amazon SageMaker Ground Truth: JSON lines, one image each.

A line names its image in ``source-ref``. A label attribute of any name, say ``bounding-box``, holds ``image_size`` and
``annotations`` (``class_id``, ``left``, ``top``, ``width``, ``height`` in pixels), and ``bounding-box-metadata`` holds
``class-map``, ``creation-date``, ``human-annotated``, ``job-name`` and the confidence of each object. Of several such
attributes, as chained jobs and adjustment jobs leave them, the newest that people annotated counts.

A person's answer without a box says that there is none. What ``human-annotated`` calls a model's work, such as
automated labels and pre-drawn boxes, is kept as proposals that nobody has confirmed. A job that failed on an image says
nothing about it.

Format: https://docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import (
    NO_CORNERS,
    Corners,
    EntryProblem,
    ParsedBox,
    ParsedClass,
    ParsedDocument,
    ParsedImage,
    class_name_problem,
    near_equal_names,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import decode_text, shown, to_float, to_id, to_size
from tasks.data.formats.shapes import looks_like_fractions
from tasks.data.formats.writing import plain_boxes, required_size

ENDINGS = (".manifest", ".jsonl")
"""File name endings that manifests have; ``.json`` is one too."""
LABEL_ATTRIBUTE = "gleaner"
"""Of a manifest that is written here. A job has its own attribute, so that its answers stand beside these boxes."""
_METADATA = "-metadata"
_TYPE = "groundtruth/object-detection"
_SIDES = ("left", "top", "width", "height")
_MAX_CLASS_ID = 1_000_000


def is_manifest_line(line: str) -> bool:
    """Whether a line of text is an entry of a manifest."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and "source-ref" in entry


def parse_ground_truth(content: bytes, where: str) -> ParsedDocument:
    """Read a manifest; a line that cannot be read becomes an image with a problem.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Raises:
        TruncatedFileError: the last line ends too early.
        UnsupportedFormatError: it holds no line of a manifest.
    """
    text, guessed = decode_text(content)
    last = text.rpartition("\n")[2].strip("\x00 \t\r")
    if last.startswith("{") and not last.endswith("}"):
        raise TruncatedFileError(where, "the end of the last line is missing, expected a whole file", "Copy it again.")
    images = ImageTableBuilder("annotations[{}]")
    classes: dict[tuple[int, str], None] = {}
    notes = [EntryProblem(where, f"the text is no UTF-8, read as {guessed}")] if guessed else []
    num_entries = 0
    for position, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        image, named, note = _image(line, f"{where}: line {position}")
        num_entries += bool(image.name)
        classes.update(dict.fromkeys(named))
        notes += [EntryProblem(image.entry, note)] if note else []
        images.add(image)
    if not num_entries:
        problem = "the lines that name an image in source-ref are 0, expected an augmented manifest"
        raise UnsupportedFormatError(where, problem)
    listed = tuple(ParsedClass(number, name) for number, name in sorted(classes))
    return ParsedDocument(
        format="ground_truth",
        where=where,
        classes=listed,
        images=images.build(),
        notes=tuple(notes),
        near_equal_names=near_equal_names(dict.fromkeys(known.name for known in listed)),
    )


def _image(line: str, where: str) -> tuple[ParsedImage, list[tuple[int, str]], str | None]:
    """The image of a line, the numbers and names of its classes, and a remark."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"the line is no JSON ({str(error)[:100]}), expected an object with source-ref"
        return ParsedImage("", where, problems=(problem,)), [], None
    name = entry.get("source-ref") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        problem = f"source-ref is {shown(name)}, expected the address of an image"
        return ParsedImage("", where, problems=(problem,)), [], None
    image_id = entry.get("image_id")
    known = ParsedImage(name, where, image_id=image_id if isinstance(image_id, str) else None)
    attributes = list(_label_attributes(entry))
    answered = [found for found in attributes if not found.failure]
    if answered:
        answer = max(reversed(answered), key=lambda found: (found.is_human, found.created_at))
        return _answer(answer, known), answer.classes, None
    if attributes:
        return known, [], f"labeling failed ({attributes[0].failure}), read as unlabeled"
    types = sorted({str(entry[key].get("type")) for key in entry if _is_metadata(entry, key)})
    if types:
        problem = f"the labels are {shown(', '.join(types))}, expected {_TYPE}"
        return replace(known, problems=(problem,)), [], None
    return known, [], None


class _LabelAttribute:
    """A bounding-box label attribute of a line with its metadata."""

    def __init__(self, value: Any, metadata: Mapping[str, Any]) -> None:
        self.value: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        self.metadata = metadata
        reason = metadata.get("failure-reason")
        self.failure = shown(reason) if reason else ""
        self.is_human = str(metadata.get("human-annotated", "yes")).strip().lower() in ("yes", "true", "1")
        stated = metadata.get("creation-date")
        self.finished_at = _with_zone(stated) if isinstance(stated, str) else None
        self.created_at = _moment(self.finished_at)
        class_map = metadata.get("class-map")
        self._name_of: dict[int, str] = {}
        if isinstance(class_map, Mapping):
            for key, name in class_map.items():
                number = to_id(key)
                text = name.strip() if isinstance(name, str) else ""
                if isinstance(number, int) and 0 <= number <= _MAX_CLASS_ID and not class_name_problem(text):
                    self._name_of[number] = text

    @property
    def classes(self) -> list[tuple[int, str]]:
        """Numbers and names of the class map."""
        return list(self._name_of.items())

    def name(self, number: Any) -> str | None:
        """The class of a number; None: it has none."""
        key = to_id(number)
        return self._name_of.get(key) if isinstance(key, int) else None

    def score(self, position: int) -> float | None:
        """The confidence of an object; None: there is none."""
        objects = self.metadata.get("objects")
        stated = objects[position] if isinstance(objects, list) and position < len(objects) else None
        return to_float(stated.get("confidence")) if isinstance(stated, Mapping) else None


def _is_metadata(entry: Mapping[str, Any], key: str) -> bool:
    return key.endswith(_METADATA) and isinstance(entry[key], Mapping)


def _label_attributes(entry: Mapping[str, Any]) -> Iterator[_LabelAttribute]:
    for key in entry:
        if not _is_metadata(entry, key):
            continue
        value, metadata = entry.get(key.removesuffix(_METADATA)), entry[key]
        is_box_list = isinstance(value, Mapping) and "annotations" in value
        if metadata.get("type") == _TYPE or (metadata.get("type") is None and is_box_list):
            yield _LabelAttribute(value, metadata)


def _answer(answer: _LabelAttribute, known: ParsedImage) -> ParsedImage:
    width_px, height_px, size_problem = _size(answer.value.get("image_size"))
    listed = answer.value.get("annotations")
    problems = [size_problem] if size_problem else []
    if not isinstance(listed, list):
        problems.append(f"annotations is {shown(listed)}, expected a list")
        listed = []
    drawn = [_box(value, f"annotations[{n}]", answer) for n, value in enumerate(listed)]
    job = answer.metadata.get("job-name")
    sized = replace(known, width_px=width_px, height_px=height_px)
    if not answer.is_human:
        proposed = tuple(
            replace(box, score=answer.score(position)) for position, box in enumerate(drawn) if box.problem is None
        )
        return replace(sized, predicted=proposed)
    return replace(
        sized,
        problems=tuple(problems),
        boxes=tuple(drawn),
        status=None if problems else "labeled" if drawn else "empty",
        annotator=job.rstrip("/").rpartition("/")[2] or None if isinstance(job, str) else None,
        finished_at=answer.finished_at,
    )


def _size(stated: Any) -> tuple[int | None, int | None, str | None]:
    sizes = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not sizes:
        return None, None, None
    if len(sizes) > 1 or not isinstance(sizes[0], Mapping):
        return None, None, f"image_size is {shown(stated)}, expected one object with width and height"
    return to_size(sizes[0].get("width"), sizes[0].get("height"))


def _box(value: Any, entry: str, answer: _LabelAttribute) -> ParsedBox:
    if not isinstance(value, Mapping):
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=f"the entry is {shown(value)}, expected an object")
    category = answer.name(value.get("class_id"))
    if category is None:
        problem = f"class_id is {shown(value.get('class_id'))}, expected a number of the class-map"
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    found = _corners(value)
    if isinstance(found, str):
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=found)
    return ParsedBox(category, found, entry=entry)


def _corners(value: Mapping[str, Any]) -> Corners | str:
    numbers = []
    for side in _SIDES:
        number = to_float(value.get(side))
        if number is None or not math.isfinite(number):
            return f"{side} is {shown(value.get(side))}, expected a number"
        numbers.append(number)
    left, top, width, height = numbers
    if width < 0 or height < 0:
        return f"width and height are {width:g} and {height:g}, expected 0 or more"
    corners = (left, top, left + width, top + height)
    if looks_like_fractions(corners):
        return f"the box is {shown(numbers)}, fractions of the image, expected pixels"
    return corners


def _with_zone(stated: str) -> str | None:
    """A time with its zone, which Ground Truth leaves out: it is UTC. None: it is no time."""
    try:
        moment = datetime.fromisoformat(stated.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def _moment(finished_at: str | None) -> float:
    try:
        return -math.inf if finished_at is None else datetime.fromisoformat(finished_at).timestamp()
    except (ValueError, OverflowError):
        return -math.inf


def write_ground_truth(
    document: ParsedDocument, *, created_at: str, attribute: str = LABEL_ATTRIBUTE, human_annotated: bool = True
) -> bytes:
    """Write a manifest, with corners rounded to whole pixels, as the format has them.

    Args:
        document: with images of known sizes.
        created_at: ISO 8601; of images that state no time of their own.
        attribute: name of the label attribute.
        human_annotated: whether people drew the boxes. Images that are not reviewed are then written without a label.

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, a box is of another shape than a box, or an image's
            size is unknown.
    """
    number_of = {name: number for number, name in enumerate(document.class_names)}
    lines = []
    for image in document.images:
        entry: dict[str, Any] = {"source-ref": image.name}
        if image.image_id is not None:
            entry["image_id"] = image.image_id
        boxes = list(plain_boxes(image, number_of))
        if not human_annotated or boxes or image.status in ("labeled", "empty"):
            entry[attribute] = _value(image, boxes, number_of)
            entry[attribute + _METADATA] = _metadata(image, boxes, number_of, created_at, human_annotated, attribute)
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def _value(image: ParsedImage, boxes: list[ParsedBox], number_of: Mapping[str, int]) -> dict[str, Any]:
    width_px, height_px = required_size(image)
    annotations = []
    for box in boxes:
        left, top, right, bottom = (round(corner) for corner in box.xyxy)
        sides = (left, top, max(right - left, 1), max(bottom - top, 1))
        annotations.append({"class_id": number_of[box.category or ""], **dict(zip(_SIDES, sides, strict=True))})
    size = {"width": width_px, "height": height_px, "depth": 3}
    return {"image_size": [size], "annotations": annotations}


def _metadata(
    image: ParsedImage,
    boxes: list[ParsedBox],
    number_of: Mapping[str, int],
    created_at: str,
    is_human: bool,
    attribute: str,
) -> dict[str, Any]:
    confidences = [0 if box.score is None else round(box.score, 4) for box in boxes]
    return {
        "objects": [{"confidence": confidence} for confidence in confidences],
        "class-map": {str(number): name for name, number in number_of.items()},
        "type": _TYPE,
        "human-annotated": "yes" if is_human else "no",
        "creation-date": image.finished_at or created_at,
        "job-name": f"labeling-job/{image.annotator or attribute}",
    }
