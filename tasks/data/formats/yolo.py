"""Read and write YOLO: one text file per image, a line per object as ``class cx cy width height`` in fractions.

Lines with more numbers are polygons (``class x1 y1 x2 y2 x3 y3 ...``, four points also for oriented boxes), a sixth
number is a confidence. What the class numbers mean stands in ``data.yaml``, ``classes.txt`` or ``obj.names``; numbers
count lines, so a blank line in the middle of such a list is a number without a class. Polygons of four points that are
rectangles along the image's sides are boxes.

The format does not state image sizes: boxes are fractions (``ParsedImage.units``) unless the caller knows the size.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import (
    NO_CORNERS,
    Corners,
    EntryProblem,
    ParsedBox,
    ParsedClass,
    ParsedDocument,
    ParsedImage,
    ShapeKind,
    class_name_problem,
    near_equal_names,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import decode_text, shown, to_float
from tasks.data.formats.object_lines import parse_object_lines
from tasks.data.formats.shapes import is_rectangle, point_bounds, to_points
from tasks.data.formats.writing import number, plain_boxes, required_size

_MAX_NAMES_BYTES = 1 << 20
_MAX_CLASSES = 100_000
_FRACTION_RANGE = (-0.5, 1.5)
"""Further out the numbers are no fractions of the image, but pixels."""
_DECIMALS = 9

Size = tuple[int, int]


@dataclass(frozen=True)
class YoloClasses:
    """What class numbers mean, and what else ``data.yaml`` says."""

    names: tuple[str | None, ...]
    """By number; None: the number has no class."""
    splits: Mapping[str, tuple[str, ...]]
    """``train``, ``val``, ``test``: folders or lists of images, as written."""
    num_keypoint_values: int = 0
    """Numbers behind a box, of pose labels."""
    problems: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[ParsedClass, ...]:
        """The classes in order."""
        return tuple(ParsedClass(n, name) for n, name in enumerate(self.names) if name is not None)


def parse_yolo_classes(content: bytes, file_name: str) -> YoloClasses:
    """Read class names, from ``data.yaml`` (list or map) or from a list with a name a line.

    Raises:
        UnsupportedFormatError: it holds no names.
    """
    if len(content) > _MAX_NAMES_BYTES:
        problem = f"the class names are {len(content)} bytes long, expected at most {_MAX_NAMES_BYTES}"
        raise UnsupportedFormatError(file_name, problem)
    text = decode_text(content)[0]
    if not file_name.lower().endswith((".yaml", ".yml")):
        lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
        while lines and not lines[-1]:
            lines.pop()
        return _checked(lines, {}, 0)
    try:
        document = yaml.load(text, Loader=yaml.BaseLoader)  # plain text: `no`, `1e3` and `null` are names too
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = f"the content is no YAML ({' '.join(str(error).split())[:100]}), expected names"
        raise UnsupportedFormatError(file_name, problem) from None
    names = _names_by_number(document.get("names")) if isinstance(document, dict) else None
    if names is None:
        found = shown(document.get("names")) if isinstance(document, dict) else shown(document)
        raise UnsupportedFormatError(file_name, f"names is {found}, expected a list or a map from number to name")
    splits = {key: paths for key in ("train", "val", "test") if (paths := _paths(document, key))}
    return _checked(names, splits, _keypoint_values(document.get("kpt_shape")))


def _names_by_number(names: Any) -> list[Any] | None:
    if isinstance(names, list):
        return names
    if not isinstance(names, dict):
        return None
    by_number: dict[int, Any] = {}
    for key, name in names.items():
        number_or_none = to_float(key)
        if number_or_none is None or not 0 <= number_or_none < _MAX_CLASSES or number_or_none != int(number_or_none):
            return None
        by_number[int(number_or_none)] = name
    return [by_number.get(position, "") for position in range(max(by_number, default=-1) + 1)]


def _paths(document: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    root, value = document.get("path"), document.get(key) or (document.get("valid") if key == "val" else None)
    paths = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    prefix = f"{root.rstrip('/')}/" if isinstance(root, str) and root not in ("", ".") else ""
    return tuple(f"{prefix}{path}" for path in paths if isinstance(path, str) and path)


def _keypoint_values(shape: Any) -> int:
    if (
        isinstance(shape, list)
        and len(shape) == 2
        and all(str(side).isdecimal() and int(side) < 1000 for side in shape)
    ):
        return int(shape[0]) * int(shape[1])
    return 0


def _checked(names: Sequence[Any], splits: Mapping[str, tuple[str, ...]], keypoints: int) -> YoloClasses:
    kept: list[str | None] = []
    problems = []
    for position, name in enumerate(names):
        text = name.strip() if isinstance(name, str) else ""
        problem = class_name_problem(text)
        if problem:
            problems.append(f"class {position}: {problem}")
        kept.append(None if problem else text)
    return YoloClasses(tuple(kept), splits, keypoints, tuple(problems))


def parse_yolo(content: bytes, file_name: str, classes: YoloClasses, size_px: Size | None = None) -> ParsedImage:
    """Read one label file.

    Args:
        content: of the file.
        file_name: its path, which says which image is meant.
        classes: what the class numbers mean.
        size_px: width and height of the image, where they are known.
    """
    parsed = parse_object_lines(
        content, file_name, lambda line, entry: [_box(line.split(), entry, classes)], lambda folder: folder == "labels"
    )
    image = replace(parsed, units="fraction")
    return image if size_px is None else image.with_size(*size_px)


def parse_yolo_files(
    files: Iterable[tuple[str, bytes]],
    where: str,
    classes: YoloClasses,
    size_of: Callable[[str], Size | None] | None = None,
) -> ParsedDocument:
    """Read a folder of label files.

    Args:
        files: path and content of each.
        where: name of the folder, for messages.
        classes: what the class numbers mean.
        size_of: gives the image size of a label file's path, where it is known.
    """
    images = ImageTableBuilder("line {}")
    for file_name, content in files:
        images.add(parse_yolo(content, file_name, classes, size_of(file_name) if size_of else None))
    return ParsedDocument(
        format="yolo",
        where=where,
        classes=classes.classes,
        images=images.build(),
        problems=tuple(EntryProblem(where, problem) for problem in classes.problems),
        near_equal_names=near_equal_names(known.name for known in classes.classes),
    )


def _box(fields: Sequence[str], entry: str, classes: YoloClasses) -> ParsedBox:
    category, problem = _category(fields[0], classes)
    if problem:
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    values = [to_float(field) for field in fields[1:]]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < len(values):
        text = shown(" ".join(fields))
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=f"the line is {text}, expected numbers")
    found = _shape(numbers, classes.num_keypoint_values)
    if isinstance(found, str):
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=found)
    corners, kind, score = found
    low, high = _FRACTION_RANGE
    if not all(low <= corner <= high for corner in corners):
        problem = f"the box is {shown(' '.join(fields[1:]))}, expected fractions of the image from 0 to 1"
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=problem)
    return ParsedBox(category, corners, kind, kind == "box", score=score, entry=entry)


def _category(field: str, classes: YoloClasses) -> tuple[str | None, str | None]:
    """The class name of a number such as ``1``, ``1.0`` or ``1.0e+00``; or the problem."""
    value = to_float(field)
    index = int(value) if value is not None and math.isfinite(value) and value.is_integer() else -1
    if not 0 <= index < len(classes.names):
        return None, f"the class is {shown(field)}, expected a number from 0 to {len(classes.names) - 1}"
    name = classes.names[index]
    return name, None if name is not None else f"the class is {index}, whose name is blank, expected a named class"


def _shape(numbers: Sequence[float], keypoint_values: int) -> tuple[Corners, ShapeKind, float | None] | str:
    """Corners as fractions, kind and score of a line's numbers; or the problem."""
    if len(numbers) in (4, 5) or (keypoint_values and len(numbers) == 4 + keypoint_values):
        cx, cy, width, height = numbers[:4]
        corners = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        return corners, "box", numbers[4] if len(numbers) == 5 else None
    points = to_points(list(numbers))
    if points is None:
        return (
            f"the numbers behind the class are {len(numbers)}, expected 4 (box) or an even number from 6 on (polygon)"
        )
    return point_bounds(points), "box" if is_rectangle(points) else "polygon", None


def write_yolo(document: ParsedDocument) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of ``data.yaml`` and of a label file for each image.

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, a box is of another shape than a box, or an image's
            size is unknown.
    """
    names = document.class_names
    number_of = {name: position for position, name in enumerate(names)}
    yield "data.yaml", write_yolo_classes(names)
    for image in document.images:
        width_px, height_px = (1, 1) if image.units == "fraction" else required_size(image)
        lines = []
        for box in plain_boxes(image, number_of):
            x1, y1, x2, y2 = box.xyxy
            sides = ((x1 + x2) / 2 / width_px, (y1 + y2) / 2 / height_px, (x2 - x1) / width_px, (y2 - y1) / height_px)
            values = [number(side, _DECIMALS) for side in sides] + ([] if box.score is None else [number(box.score)])
            lines.append(f"{number_of[box.category or '']} {' '.join(values)}\n")
        yield PurePosixPath(image.name).with_suffix(".txt").as_posix(), "".join(lines).encode()


def write_yolo_classes(names: Sequence[str]) -> bytes:
    """Write ``data.yaml``, which says what the class numbers mean."""
    return yaml.safe_dump({"names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True).encode()
