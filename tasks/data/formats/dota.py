"""Read DOTA: one text file per image, a line per object as ``x1 y1 x2 y2 x3 y3 x4 y4 class difficult`` in pixels.

A quadrilateral whose sides run along those of the image is a box; any other is a polygon with its bounding box. The
lines ``imagesource:GoogleEarth`` and ``gsd:0.146`` that stand above the objects say nothing about them. ``difficult``
is 0, 1 or, from DOTA-v1.5 on, 2 (a very small object), and may be missing. The file's path says which image is meant:
``labelTxt/P0001.txt`` belongs to ``images/P0001.png``.

Format: https://captain-whu.github.io/DOTA/dataset.html
"""

import math
import re
from collections.abc import Iterable

from tasks.data.formats.base import (
    NO_CORNERS,
    ParsedBox,
    ParsedDocument,
    ParsedImage,
    class_name_problem,
    near_equal_names,
    numbered_classes,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import shown, to_float
from tasks.data.formats.object_lines import parse_object_lines
from tasks.data.formats.shapes import is_rectangle, looks_like_fractions, point_bounds

_NUM_COORDINATES = 8
_HEADER = re.compile(r"\s*(?:imagesource|gsd)\s*:.*", re.IGNORECASE)
_NUMBER = r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_OBJECT = re.compile(rf"\s*(?:{_NUMBER}\s+){{8}}(\S++)(?:\s+[012])?\s*")
_IS_DIFFICULT = {"0": False, "1": True, "2": True}


def is_dota(lines: Iterable[str]) -> bool:
    """Whether all lines that are not blank are those of a DOTA file; there must be one at least."""
    told = [line for line in lines if line.strip()]
    return bool(told) and all(_HEADER.fullmatch(line) or _is_object(line) for line in told)


def _is_object(line: str) -> bool:
    found = _OBJECT.fullmatch(line)
    return found is not None and to_float(found.group(1)) is None  # a ninth number instead of the class is YOLO


def parse_dota(content: bytes, file_name: str) -> ParsedImage:
    """Read one text file.

    Args:
        content: of the file.
        file_name: its path, which says which image is meant.
    """
    return parse_object_lines(content, file_name, _boxes, lambda folder: folder.lower().startswith("labeltxt"))


def parse_dota_files(files: Iterable[tuple[str, bytes]], where: str) -> ParsedDocument:
    """Read a folder of text files; the classes are numbered as they appear.

    Args:
        files: path and content of each.
        where: name of the folder, for messages.
    """
    images = ImageTableBuilder("line {}")
    written: dict[str, None] = {}
    for file_name, content in files:
        image = parse_dota(content, file_name)
        written.update(dict.fromkeys(box.category for box in image.boxes if box.category is not None))
        images.add(image)
    return ParsedDocument(
        format="dota",
        where=where,
        classes=numbered_classes(written),
        images=images.build(),
        near_equal_names=near_equal_names(written),
    )


def _boxes(line: str, entry: str) -> list[ParsedBox]:
    return [] if _HEADER.fullmatch(line) else [_box(line.split(), entry)]


def _box(fields: list[str], entry: str) -> ParsedBox:
    if len(fields) not in (_NUM_COORDINATES + 1, _NUM_COORDINATES + 2):
        problem = f"the fields of the line are {len(fields)}, expected 8 coordinates, a class and difficult"
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    category, flag = fields[_NUM_COORDINATES], (*fields, "0")[_NUM_COORDINATES + 1]
    if problem_of_name := class_name_problem(category):
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem_of_name)
    if flag not in _IS_DIFFICULT:
        problem = f"difficult is {shown(flag)}, expected 0, 1 or 2"
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=problem)
    values = [to_float(field) for field in fields[:_NUM_COORDINATES]]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < _NUM_COORDINATES:
        text = shown(" ".join(fields[:_NUM_COORDINATES]))
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=f"the coordinates are {text}, expected numbers")
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    corners = point_bounds(points)
    if looks_like_fractions(corners):
        text = shown(" ".join(fields[:_NUM_COORDINATES]))
        problem = f"the coordinates are {text}, fractions of the image, expected pixels"
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=problem)
    is_box = is_rectangle(points)
    return ParsedBox(
        category, corners, "box" if is_box else "polygon", is_box, is_ignored=_IS_DIFFICULT[flag], entry=entry
    )
