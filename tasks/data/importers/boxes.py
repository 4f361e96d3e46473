"""One rule for every box that comes in: inside the image, of some size, of a class with a usable name."""

import math

from pydantic import TypeAdapter, ValidationError

from tasks.data.schemas import Box
from tasks.params.stages import ClassName

CLIP_TOLERANCE_PX = 1.0
"""Corners off by at most this are the usual mix-up of 0-based, 1-based and inclusive pixels, and are clipped.

Further out the annotation belongs to another image or another size of it, and nothing on it can be trusted.
"""

_class_name: TypeAdapter[str] = TypeAdapter(ClassName)


class BoxProblem(ValueError):
    """Why a box cannot be trusted: ``<what> is <value>, expected <allowed>``."""


def validate_box(
    category: str,
    corners: tuple[float, float, float, float],
    width_px: int,
    height_px: int,
    *,
    min_box_side_px: float = 0.0,
) -> tuple[Box, bool]:
    """A box inside its image, and whether it had to be clipped.

    Args:
        category: class name.
        corners: x1, y1, x2, y2 in pixels, 0-based and continuous (x2 is the right edge, not the last pixel).
        width_px: of the image.
        height_px: of the image.
        min_box_side_px: shortest side a box may have inside the image.

    Raises:
        BoxProblem: not finite, no area, too small, or more than ``CLIP_TOLERANCE_PX`` outside.
    """
    formatted = "[" + ", ".join(f"{corner:g}" for corner in corners) + "]"
    if not all(math.isfinite(corner) for corner in corners):
        raise BoxProblem(f"a box of {category} is {formatted}, expected finite numbers")
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        raise BoxProblem(
            f"a box of {category} has no area: x1, y1, x2, y2 is {formatted}, expected x1 < x2 and y1 < y2"
        )
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width_px)), min(y2, float(height_px)))
    if max(abs(a - b) for a, b in zip(corners, inside, strict=True)) > CLIP_TOLERANCE_PX:
        problem = f"a box of {category} is {formatted}, expected inside the image of {width_px} x {height_px} px"
        raise BoxProblem(problem)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise BoxProblem(f"a box of {category} is {formatted}: no area is left inside the image, expected some")
    sides = inside[2] - inside[0], inside[3] - inside[1]
    if min(sides) < min_box_side_px:
        size = f"{sides[0]:g} x {sides[1]:g} px"
        raise BoxProblem(
            f"a box of {category} is {formatted}, {size}, expected sides of at least {min_box_side_px:g} px"
        )
    return Box(category=category, xyxy_px=inside), inside != corners


def validate_class_name(name: str) -> str:
    """The name without surrounding blanks.

    Raises:
        BoxProblem: empty, longer than 100 characters, or with control characters.
    """
    try:
        return _class_name.validate_python(name.strip())
    except ValidationError:
        raise BoxProblem(f"a class name is {name[:40]!r}, expected 1 to 100 printable characters") from None
