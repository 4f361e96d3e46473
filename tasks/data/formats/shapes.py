"""Compute bounding boxes of rotated rectangles, polygons, ellipses and run-length encoded masks."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tasks.data.formats.base import Corners
from tasks.data.formats.decoding import to_float

_MAX_MASK_PIXELS = 1 << 28
_RIGHT_ANGLE_TOLERANCE_DEG = 1e-6


def is_upright(rotation_deg: float) -> bool:
    """Whether a rectangle turned by the angle still has sides along those of the image (0, 90, 360, ...)."""
    remainder = math.fmod(abs(rotation_deg), 90.0)
    return min(remainder, 90.0 - remainder) <= _RIGHT_ANGLE_TOLERANCE_DEG


def rotated_bounds(corners: Corners, rotation_deg: float, pivot: tuple[float, float] | None = None) -> Corners:
    """Bounding box of a rectangle turned clockwise about a pivot (None: its center)."""
    x1, y1, x2, y2 = corners
    if math.fmod(rotation_deg, 360.0) == 0:
        return corners
    cx, cy = pivot if pivot is not None else ((x1 + x2) / 2, (y1 + y2) / 2)
    quarter, rest = divmod(rotation_deg, 90.0)
    if rest == 0:  # exact, without the rounding of sine and cosine
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[int(quarter) % 4]
    else:
        cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))  # type: ignore[assignment]
    points = [
        (cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos) for x in (x1, x2) for y in (y1, y2)
    ]
    return point_bounds(points)


def ellipse_bounds(cx: float, cy: float, radius_x: float, radius_y: float, rotation_deg: float) -> Corners:
    """Bounding box of an ellipse turned about its center."""
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    half_w, half_h = math.hypot(radius_x * cos, radius_y * sin), math.hypot(radius_x * sin, radius_y * cos)
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def point_bounds(points: Sequence[tuple[float, float]]) -> Corners:
    """Bounding box of points; there must be one at least."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def is_rectangle(points: Sequence[tuple[float, float]], tolerance: float = 1e-6) -> bool:
    """Whether a polygon is nothing but a rectangle along the image's sides."""
    ring = list(points[:-1]) if len(points) == 5 and points[0] == points[-1] else list(points)
    if len(ring) != 4:
        return False
    x1, y1, x2, y2 = point_bounds(ring)
    if any(min(abs(x - x1), abs(x - x2)) > tolerance or min(abs(y - y1), abs(y - y2)) > tolerance for x, y in ring):
        return False
    # Neighbors share exactly one coordinate, so that a bow tie or a doubled edge is none.
    return all(
        (abs(a[0] - b[0]) <= tolerance) != (abs(a[1] - b[1]) <= tolerance) for a, b in pairwise([*ring, ring[0]])
    )


def looks_like_fractions(corners: Corners) -> bool:
    """Whether a box in a format of pixels lies between 0 and 1, so that its numbers are fractions of the image."""
    x1, y1, x2, y2 = corners
    return 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def to_points(values: Any) -> list[tuple[float, float]] | None:
    """Points of a flat list x, y, x, y, ...; None: it is no polygon of three points or more."""
    if not isinstance(values, list | tuple) or len(values) < 6 or len(values) % 2:
        return None
    numbers = [to_float(value) for value in values]
    if any(number is None or not math.isfinite(number) for number in numbers):
        return None
    flat = [number for number in numbers if number is not None]
    return list(zip(flat[::2], flat[1::2], strict=True))


def rle_bounds(rle: Any) -> Corners | None:
    """Bounding box of a COCO run-length encoding, compressed or not; None: it is malformed or empty.

    The runs are decoded here and not by ``pycocotools.mask``, whose C code trusts its input.
    """
    if not isinstance(rle, dict):
        return None
    size = rle.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        return None
    height, width = size
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        return None
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if height * width > _MAX_MASK_PIXELS or not isinstance(counts, list):
        return None
    if any(type(run) is not int or run < 0 for run in counts) or sum(counts) != height * width:
        return None
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    starts, stops = ends[0:-1:2], ends[1::2]  # runs of zeros and of ones in turn, column by column
    filled = stops > starts
    starts, stops = starts[filled], stops[filled] - 1
    if not len(starts):
        return None
    first_row, last_row = starts % height, stops % height
    one_column = starts // height == stops // height
    top = int(np.where(one_column, first_row, 0).min())
    bottom = int(np.where(one_column, last_row, height - 1).max()) + 1
    return float(starts[0] // height), float(top), float(stops[-1] // height + 1), float(bottom)


def _decompressed(text: str) -> list[int] | None:
    """Runs of COCO's compressed form: 5 bits a character, from the third run on as difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def brush_bounds(data: Any, width: int, height: int) -> Corners | None:
    """Bounding box of a Label Studio brush mask (run lengths of RGBA bytes); None: it is malformed or empty."""
    if not isinstance(data, list | tuple) or not 0 < width * height <= _MAX_MASK_PIXELS // 4:
        return None
    if any(type(byte) is not int or not 0 <= byte <= 255 for byte in data):
        return None
    values = _unpacked(bytes(data), 4 * width * height)
    if values is None:
        return None
    alpha = values.reshape(height, width, 4)[:, :, 3] > 0
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _unpacked(data: bytes, length: int) -> "np.ndarray[Any, np.dtype[np.uint8]] | None":
    """Bytes of a run-length encoding whose header states the length, the word size and four run sizes."""
    total, position = len(data) * 8, 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > total:
            raise EOFError
        first, last = (position - count) // 8, (position + 7) // 8
        chunk = int.from_bytes(data[first:last], "big")
        return (chunk >> (last * 8 - position)) & ((1 << count) - 1)

    out = np.zeros(length, dtype=np.uint8)
    try:
        if read(32) != length:
            return None
        word = read(5) + 1
        sizes = [read(4) + 1 for _ in range(4)]
        done = 0
        while done < length:
            is_run = read(1)
            until = min(done + 1 + read(sizes[read(2)]), length)
            if is_run:
                out[done:until] = read(word) & 0xFF
            else:
                for index in range(done, until):
                    out[index] = read(word) & 0xFF
            done = until
    except EOFError:
        return None
    return out
