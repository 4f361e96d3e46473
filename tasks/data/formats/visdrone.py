"""Read VisDrone: one text file per image, a line per object as eight whole numbers with commas between them.

``left, top, width, height, score, category, truncation, occlusion``, in pixels. The categories have fixed numbers:

- 0 is a region that was not annotated object by object. Objects of every class may lie in it, so that it becomes one
  crowd region of each class.
- 1 to 10 are objects; 11, ``others``, are vehicles of no other class.

``score`` 0 says that the object is left out of evaluation. Truncation and occlusion are checked and not kept.

Format: https://github.com/VisDrone/VisDrone2018-DET-toolkit
"""

import math
import re
from collections.abc import Iterable, Iterator

from tasks.data.formats.base import NO_CORNERS, ParsedBox, ParsedDocument, ParsedImage, numbered_classes
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import shown, to_float
from tasks.data.formats.object_lines import parse_object_lines

CATEGORIES = (
    "ignored regions",
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
    "others",
)
"""Names by number. The first is no class."""
CLASSES = CATEGORIES[1:]

_FIELDS = ("left", "top", "width", "height", "score", "category", "truncation", "occlusion")
_OBJECT = re.compile(r"\s*-?\d+\s*(?:,\s*-?\d+\s*){3},\s*[01]\s*,\s*(?:\d|1[01])\s*,\s*[01]\s*,\s*[012]\s*,?\s*")
_HIGHEST = {"score": 1, "category": 11, "truncation": 1, "occlusion": 2}


def is_visdrone(lines: Iterable[str]) -> bool:
    """Whether all lines that are not blank are those of a VisDrone file; there must be one at least."""
    told = [line for line in lines if line.strip()]
    return bool(told) and all(_OBJECT.fullmatch(line) for line in told)


def parse_visdrone(content: bytes, file_name: str) -> ParsedImage:
    """Read one text file.

    Args:
        content: of the file.
        file_name: its path, which says which image is meant.
    """
    return parse_object_lines(content, file_name, _boxes, lambda folder: folder.lower() == "annotations")


def parse_visdrone_files(files: Iterable[tuple[str, bytes]], where: str) -> ParsedDocument:
    """Read a folder of text files; the classes are always the eleven of the data set.

    Args:
        files: path and content of each.
        where: name of the folder, for messages.
    """
    images = ImageTableBuilder("line {}")
    for file_name, content in files:
        images.add(parse_visdrone(content, file_name))
    return ParsedDocument(format="visdrone", where=where, classes=numbered_classes(CLASSES), images=images.build())


def _boxes(text: str, entry: str) -> Iterator[ParsedBox]:
    """The object of a line, or its region once for each class."""
    found = _numbers(text)
    if isinstance(found, str):
        yield ParsedBox(None, NO_CORNERS, entry=entry, problem=found)
        return
    left, top, width, height, score, category = found[:6]
    corners = (left, top, left + width, top + height)
    if category == 0:
        for name in CLASSES:
            yield ParsedBox(name, corners, is_crowd=True, entry=entry)
        return
    yield ParsedBox(CATEGORIES[int(category)], corners, is_ignored=score == 0, entry=entry)


def _numbers(text: str) -> list[float] | str:
    """The eight numbers of a line, or the problem."""
    fields = text.removesuffix(",").split(",")
    if len(fields) != len(_FIELDS):
        return f"the numbers of the line are {len(fields)}, expected 8: {', '.join(_FIELDS)}"
    numbers = []
    for name, field in zip(_FIELDS, fields, strict=True):
        value = to_float(field)
        if value is None or not math.isfinite(value):
            return f"{name} is {shown(field.strip())}, expected a number"
        highest = _HIGHEST.get(name)
        if highest is not None and (not value.is_integer() or not 0 <= value <= highest):
            return f"{name} is {shown(field.strip())}, expected a whole number from 0 to {highest}"
        numbers.append(value)
    if numbers[2] < 0 or numbers[3] < 0:
        return f"width and height are {numbers[2]:g} and {numbers[3]:g}, expected 0 or more"
    return numbers
