"""Read the shape of a COCO annotation: its bbox, and what outline and rotation say about it."""

import math
from collections.abc import Mapping
from typing import Any

from tasks.data.formats.base import Corners, ShapeKind
from tasks.data.formats.decoding import shown, to_float
from tasks.data.formats.shapes import (
    is_rectangle,
    is_upright,
    looks_like_fractions,
    point_bounds,
    rle_bounds,
    rotated_bounds,
    to_points,
)


def coco_shape(entry: Mapping[str, Any]) -> tuple[Corners, ShapeKind, float, bool] | str:
    """Corners, kind, rotation and whether the box was stated; or the problem."""
    bbox, segmentation = entry.get("bbox"), entry.get("segmentation")
    numbers = [to_float(value) for value in bbox] if isinstance(bbox, list | tuple) else []
    if len(numbers) == 5 and None not in numbers:  # Detectron2's rotated boxes: center, sides, counterclockwise angle
        cx, cy, width, height, turned = (number or 0.0 for number in numbers)
        corners = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        return _turned(corners, -turned)
    stated: Corners | None = None
    if len(numbers) == 4 and None not in numbers:
        x, y, width, height = (number or 0.0 for number in numbers)
        if looks_like_fractions((x, y, x + width, y + height)):
            return f"the bbox is {shown(bbox)}, fractions of the image, expected pixels"
        stated = (x, y, x + width, y + height)
    elif bbox not in (None, [], ""):
        return f"the bbox is {shown(bbox)}, expected x, y, width, height as numbers"
    angle = _rotation(entry)
    if isinstance(angle, str):
        return angle
    if angle and stated is not None:
        return _turned(stated, angle)
    return _outlined(segmentation, stated)


def _outlined(segmentation: Any, stated: Corners | None) -> tuple[Corners, ShapeKind, float, bool] | str:
    """The box, with what its outline says about it."""
    if segmentation in (None, [], {}, "", [[]]):
        return "the bbox is missing, expected x, y, width, height" if stated is None else (stated, "box", 0.0, True)
    if isinstance(segmentation, dict):
        bounds = stated or rle_bounds(segmentation)
        problem = "the segmentation is no readable run-length encoding, and there is no bbox, expected one of them"
        return problem if bounds is None else (bounds, "rle", 0.0, stated is not None)
    rings = segmentation if isinstance(segmentation, list) else []
    if rings and not isinstance(rings[0], list):
        rings = [rings]  # one polygon without the list around it
    if stated is not None:  # the points need not be read, unless they may be those of a rectangle
        corners = to_points(rings[0]) if len(rings) == 1 and len(rings[0]) in (8, 10) else None
        is_box = corners is not None and is_rectangle(corners, tolerance=1.0)
        return stated, "box" if is_box else "polygon", 0.0, True
    points = [ring for values in rings if (ring := to_points(values)) is not None]
    if not points or len(points) < len(rings):
        return f"the segmentation is {shown(segmentation)}, and there is no bbox, expected one of them"
    bounds = point_bounds([point for ring in points for point in ring])
    if looks_like_fractions(bounds):
        return f"the segmentation is {shown(segmentation)}, fractions of the image, expected pixels"
    return bounds, "box" if len(points) == 1 and is_rectangle(points[0]) else "polygon", 0.0, False


def _turned(corners: Corners, angle: float) -> tuple[Corners, ShapeKind, float, bool]:
    if not all(math.isfinite(value) for value in (*corners, angle)):
        return corners, "rotated", 0.0, True
    bounds = rotated_bounds(corners, angle)
    return (bounds, "box", 0.0, True) if is_upright(angle) else (bounds, "rotated", angle, False)


def _rotation(entry: Mapping[str, Any]) -> float | str:
    """Degrees, from the place where CVAT writes them; or the problem."""
    attributes = entry.get("attributes")
    value = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    if value is None or value == "":
        return 0.0
    angle = to_float(value)
    if angle is None or not math.isfinite(angle):
        return f"attributes.rotation is {shown(value)}, expected degrees"
    return angle
