"""YOLO that comes back: one text file an image, a box a line as ``class cx cy w h`` in fractions of the image.

An empty file says that nothing is there. What the class numbers mean stands in ``data.yaml``, ``classes.txt`` or
``obj.names`` beside the files or above them; without one, in the order of the outbox's own ``data.yaml``.
"""

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from flows.annotation.providers.folder.parsed import ParsedAnnotation, UnsupportedFormatError

_FIELDS = 5
_MAX_NAMES_BYTES = 1 << 20


def parse_yolo(content: bytes, file_name: str, classes: Sequence[str], size_px: tuple[int, int]) -> ParsedAnnotation:
    """Read one label file.

    Args:
        content: of the file.
        file_name: says which image is meant.
        classes: what the class numbers mean.
        size_px: width and height of the image, which the file does not tell.
    """
    image = PurePosixPath(file_name).name
    boxes = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_parse_box(line.split(), classes, size_px))
        except ValueError as error:
            return ParsedAnnotation(image, has_explicit_status=True, problem=f"line {number}: {error}")
    return ParsedAnnotation(image, boxes=tuple(boxes), has_explicit_status=True)


def _parse_box(fields: Sequence[str], classes: Sequence[str], size_px: tuple[int, int]) -> dict[str, Any]:
    if len(fields) != _FIELDS:
        raise ValueError(f"the fields are {len(fields)}, expected class, cx, cy, width, height")
    try:
        index, (cx, cy, width, height) = int(fields[0]), (float(field) for field in fields[1:])
    except ValueError:
        raise ValueError(f"the line is {' '.join(fields)[:80]!r}, expected five numbers") from None
    if not 0 <= index < len(classes):
        raise ValueError(f"the class is {index}, expected 0 to {len(classes) - 1}")
    if not all(math.isfinite(side) and -0.5 <= side <= 1.5 for side in (cx, cy, width, height)):
        raise ValueError(f"the box is {' '.join(fields[1:])[:80]}, expected fractions of the image")
    width_px, height_px = size_px
    x1, y1 = (cx - width / 2) * width_px, (cy - height / 2) * height_px
    corners = (x1, y1, x1 + width * width_px, y1 + height * height_px)
    return {"category": classes[index], "xyxy_px": [round(corner, 3) for corner in corners], "rotation_deg": None}


def parse_class_names(content: bytes, file_name: str) -> list[str]:
    """Names by class number, from ``data.yaml`` or from a list with a name a line.

    Raises:
        NotUnderstoodError: it holds no names.
    """
    if len(content) > _MAX_NAMES_BYTES:
        raise UnsupportedFormatError(
            f"the class names are {len(content)} bytes long, expected at most {_MAX_NAMES_BYTES}"
        )
    text = content.decode("utf-8", "replace")
    if not file_name.lower().endswith((".yaml", ".yml")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnsupportedFormatError(f"the content is no YAML ({' '.join(str(error).split())})") from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise UnsupportedFormatError("names is missing or no list, expected the class names by their numbers")
    return [str(name) for name in names]
