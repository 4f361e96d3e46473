"""Check boxes by the one rule that import, inbox, Label Studio and doctor share.

Shape letters: N boxes, of one image or of many. A box must be finite, have an area, lie inside its image (up to 1 px
outside is the usual mix-up of 0-based, 1-based and inclusive pixels, and is clipped), have sides of some length, and
not lie on an earlier box of its class and image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Categories = Sequence[str] | NDArray[np.integer[Any]]

_CHUNK = 1 << 18
"""Boxes that are computed with at once."""
_PAIRS_BY_OFFSET_UP_TO = 64
"""Boxes of one class on one image, up to which duplicates are looked for in all images at once."""


class BoxResult(IntEnum):
    """What became of a box."""

    KEPT = 0
    CLIPPED = 1
    NOT_FINITE = 2
    NO_AREA = 3
    OUTSIDE = 4
    TOO_SMALL = 5
    DUPLICATE = 6

    @property
    def is_kept(self) -> bool:
        """Whether the box is used, clipped or not."""
        return self <= BoxResult.CLIPPED

    @property
    def words(self) -> str:
        """The result in words, for counts and reports."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class BoxRules:
    """Limits that boxes must keep."""

    min_side_px: float = 2.0
    """Shortest side a box may have inside its image."""
    clip_tolerance_px: float = 1.0
    """How far a corner may lie outside the image and is clipped."""
    duplicate_iou: float = 0.95
    """Boxes of one class that overlap more than this are one; equal boxes always are. Range (0, 1]."""


@dataclass(frozen=True)
class CheckedBoxes:
    """Boxes with what became of each. Arrays have N rows, in the order given."""

    stated_xyxy_N4: NDArray[np.float64]
    xyxy_N4: NDArray[np.float64]
    """Clipped to the image, in pixels; of refused boxes as they were stated."""
    result_N: NDArray[np.int8]
    """Values of ``BoxResult``."""
    duplicate_of_N: NDArray[np.int64]
    """Row of the earlier box that a duplicate lies on; -1."""
    categories: Categories
    size_px_N2: NDArray[np.float64]
    rules: BoxRules
    names: Sequence[str] | None = None
    """Class names, where ``categories`` are numbers."""

    @property
    def kept_N(self) -> NDArray[np.bool_]:
        """Mask of the boxes that are used."""
        mask: NDArray[np.bool_] = self.result_N <= int(BoxResult.CLIPPED)
        return mask

    def counts(self) -> dict[BoxResult, int]:
        """Count the boxes by result; the sum is N."""
        numbers = np.bincount(self.result_N, minlength=len(BoxResult)).tolist()
        return {result: numbers[result] for result in BoxResult}

    def message(self, row: int) -> str | None:
        """Say why a box is refused: ``<what> is <value>, expected <allowed>``; None: it is kept."""
        result = BoxResult(int(self.result_N[row]))
        if result.is_kept:
            return None
        corners = ", ".join(f"{corner:g}" for corner in self.stated_xyxy_N4[row].tolist())
        category = self.categories[row]
        box = f"a box of {category if self.names is None else self.names[int(category)]}"
        width_px, height_px = self.size_px_N2[row].tolist()
        if result == BoxResult.NOT_FINITE:
            return f"{box} is [{corners}], expected finite numbers"
        if result == BoxResult.NO_AREA:
            return f"{box} has no area: x1, y1, x2, y2 is [{corners}], expected x1 < x2 and y1 < y2"
        if result == BoxResult.OUTSIDE:
            return f"{box} is [{corners}], expected inside the image of {width_px:g} x {height_px:g} px"
        if result == BoxResult.TOO_SMALL:
            x1, y1, x2, y2 = self.xyxy_N4[row].tolist()
            least = f"expected sides of at least {self.rules.min_side_px:g} px"
            return f"{box} is [{corners}], {x2 - x1:g} x {y2 - y1:g} px inside the image, {least}"
        return f"{box} is [{corners}], which is there already, expected each object once"


def check_boxes(
    xyxy: ArrayLike,
    categories: Categories,
    width_px: ArrayLike,
    height_px: ArrayLike,
    rules: BoxRules | None = None,
    *,
    images: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> CheckedBoxes:
    """Check boxes of one image, or of many at once.

    Args:
        xyxy: shape (N, 4), x1, y1, x2, y2 in pixels, 0-based and continuous (x2 is the right edge).
        categories: N class names or numbers.
        width_px: of the image; for many images shape (N,).
        height_px: of the image; for many images shape (N,).
        rules: None: the usual ones.
        images: shape (N,), a number for each image; None: all boxes are of one.
        names: class names by number, for messages, where ``categories`` are numbers.
    """
    rules = rules or BoxRules()
    stated_N4 = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)
    count = len(stated_N4)
    size_N2 = np.empty((count, 2))
    size_N2[:, 0], size_N2[:, 1] = width_px, height_px
    inside_N4, result_N = _clip(stated_N4, size_N2, rules)
    group_N = _groups(categories, images, count)
    duplicate_of_N = np.full(count, -1, dtype=np.int64)
    rows = np.flatnonzero(result_N <= BoxResult.CLIPPED)
    picked = slice(None) if len(rows) == count else rows  # a slice makes no copy
    duplicate_of_N[rows] = _duplicates(inside_N4[picked], group_N[picked], rows, rules.duplicate_iou)
    result_N[duplicate_of_N >= 0] = BoxResult.DUPLICATE
    return CheckedBoxes(stated_N4, inside_N4, result_N, duplicate_of_N, categories, size_N2, rules, names)


def _clip(
    stated_N4: NDArray[np.float64], size_N2: NDArray[np.float64], rules: BoxRules
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Boxes clipped to their images, and the first rule each breaks."""
    inside_N4, result_N = np.empty_like(stated_N4), np.empty(len(stated_N4), dtype=np.int8)
    for start in range(0, len(stated_N4), _CHUNK):  # of millions at once, what is computed in between takes a gigabyte
        rows = slice(start, start + _CHUNK)
        inside_N4[rows], result_N[rows] = _clip_chunk(stated_N4[rows], size_N2[rows], rules)
    return inside_N4, result_N


def _clip_chunk(
    stated_N4: NDArray[np.float64], size_N2: NDArray[np.float64], rules: BoxRules
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    result_N = np.zeros(len(stated_N4), dtype=np.int8)
    finite_N = np.all(np.isfinite(stated_N4), axis=1)
    safe_N4 = np.where(finite_N[:, None], stated_N4, 0.0)
    inside_N4 = np.clip(safe_N4, 0.0, np.tile(size_N2, 2))
    inner_N2 = inside_N4[:, 2:] - inside_N4[:, :2]
    away_N = np.max(np.abs(safe_N4 - inside_N4), axis=1, initial=0.0)
    broken = (
        (BoxResult.NOT_FINITE, ~finite_N),
        (BoxResult.NO_AREA, np.any(safe_N4[:, 2:] <= safe_N4[:, :2], axis=1)),  # a difference could overflow
        (BoxResult.OUTSIDE, away_N > rules.clip_tolerance_px),
        (BoxResult.TOO_SMALL, np.any((inner_N2 < rules.min_side_px) | (inner_N2 <= 0), axis=1)),
        (BoxResult.CLIPPED, away_N > 0),
    )
    for result, mask_N in broken:
        result_N[(result_N == BoxResult.KEPT) & mask_N] = result
    as_stated_N = (result_N > BoxResult.CLIPPED) & (result_N != BoxResult.TOO_SMALL)
    inside_N4[as_stated_N] = stated_N4[as_stated_N]
    return inside_N4, result_N


def _groups(categories: Categories, images: ArrayLike | None, count: int) -> NDArray[np.int64]:
    """A number for each class of each image."""
    if isinstance(categories, np.ndarray):
        class_N = categories.astype(np.int64)
    else:
        known: dict[str, int] = {}
        class_N = np.array([known.setdefault(name, len(known)) for name in categories], dtype=np.int64)
    if len(class_N) != count:
        raise ValueError(f"{len(class_N)} categories for {count} boxes")
    if images is None or not count:
        return class_N
    image_N = np.asarray(images, dtype=np.int64)
    return image_N * (int(class_N.max()) + 2) + class_N + 1


def _duplicates(
    xyxy_N4: NDArray[np.float64], group_N: NDArray[np.int64], rows_N: NDArray[np.int64], iou: float
) -> NDArray[np.int64]:
    """The earlier kept box, by its row, that each box lies on; -1.

    In large groups only near neighbors are compared: the left edges, and the upper ones, of two boxes with an IoU over
    t are within (1 / t - 1) of either one's side.
    """
    found_N = np.full(len(group_N), -1, dtype=np.int64)
    if len(group_N) < 2:
        return found_N
    order = np.lexsort((xyxy_N4[:, 0], group_N))
    starts = np.flatnonzero(np.r_[True, np.diff(group_N[order]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    large = lengths > _PAIRS_BY_OFFSET_UP_TO
    for start, length in zip(starts[large].tolist(), lengths[large].tolist(), strict=True):
        _crowded(xyxy_N4, np.sort(order[start : start + length]), rows_N, iou, found_N)
    small = order[np.repeat(~large, lengths)]
    for first, second in sorted(_close_pairs(xyxy_N4, group_N, small, iou), key=lambda pair: (pair[1], pair[0])):
        if found_N[second] < 0 and found_N[first] < 0:
            found_N[second] = rows_N[first]
    return found_N


def _close_pairs(
    xyxy_N4: NDArray[np.float64], group_N: NDArray[np.int64], order: NDArray[np.int64], iou: float
) -> Iterable[tuple[int, int]]:
    """Pairs (earlier, later) of one group that overlap more than ``iou``, from boxes sorted by group and left edge."""
    for offset in range(1, _PAIRS_BY_OFFSET_UP_TO):
        first, second = order[:-offset], order[offset:]
        same = group_N[first] == group_N[second]
        if not same.any():
            return
        first, second = first[same], second[same]
        for start in range(0, len(first), _CHUNK):
            one, other = first[start : start + _CHUNK], second[start : start + _CHUNK]
            close = _overlap(xyxy_N4[one], xyxy_N4[other], iou)
            low, high = np.minimum(one, other)[close], np.maximum(one, other)[close]
            yield from zip(low.tolist(), high.tolist(), strict=True)


def _crowded(
    xyxy_N4: NDArray[np.float64],
    members: NDArray[np.int64],
    rows_N: NDArray[np.int64],
    iou: float,
    found_N: NDArray[np.int64],
) -> None:
    """Mark the duplicates within one large group; ``members`` in their given order."""
    boxes = xyxy_N4[members]
    reach_N2 = (1 / iou - 1) * (boxes[:, 2:] - boxes[:, :2]) + 1e-6 if iou > 0 else np.full((len(boxes), 2), np.inf)
    windows = [_windows(boxes[:, axis], reach_N2[:, axis]) for axis in (0, 1)]
    order, low_N, high_N = min(windows, key=lambda window: int((window[2] - window[1]).sum()))
    sorted_N4, earliest = boxes[order], members[order]
    for index, (member, low, high) in enumerate(zip(members.tolist(), low_N.tolist(), high_N.tolist(), strict=True)):
        if found_N[member] < 0 and high - low > 1:
            near = earliest[low:high]
            close = near[(near > member) & _overlap(boxes[index : index + 1], sorted_N4[low:high], iou)]
            found_N[close[found_N[close] < 0]] = rows_N[member]


def _windows(
    edge_N: NDArray[np.float64], reach_N: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The order of the edges, and for each box the first and last place of edges within reach."""
    order = np.argsort(edge_N, kind="stable")
    ordered = edge_N[order]
    low_N = np.searchsorted(ordered, edge_N - reach_N, side="left")
    return order, low_N, np.searchsorted(ordered, edge_N + reach_N, side="right")


def _overlap(one_N4: NDArray[np.float64], other_N4: NDArray[np.float64], iou: float) -> NDArray[np.bool_]:
    """Whether boxes, row by row, are equal or have an IoU over ``iou``."""
    ax1, ay1, ax2, ay2 = one_N4.T
    bx1, by1, bx2, by2 = other_N4.T
    width_N = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0.0)
    inter_N = width_N * np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0.0)
    area_N = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    is_equal_N = (ax1 == bx1) & (ay1 == by1) & (ax2 == bx2) & (ay2 == by2)
    is_close_N: NDArray[np.bool_] = (inter_N > iou * (area_N - inter_N)) | is_equal_N
    return is_close_N
