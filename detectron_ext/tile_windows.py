"""Cut large pictures into overlapping tiles, and merge the boxes that are found on them (docs/method.md#tiles).

Needs NumPy alone: an export detects by tiles without torch.

Shape shorthand: N detections over all parts of a picture, P parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EDGE_PX = 2.0
"""A box that comes this near to a border of a tile may be cut by it."""


@dataclass(frozen=True)
class TileConfig:
    """How pictures are cut."""

    side_px: int = 0
    """Of a tile, in pixels of the original; only pictures with a longer side are cut. 0: none is."""
    overlap_frac: float = 0.0
    """Share of a tile's side, in [0, 1), that it has in common with the next at least."""
    with_whole: bool = True
    """Whether the picture is also seen as a whole."""


@dataclass(frozen=True)
class Window:
    """A part of a picture, in pixels of the original."""

    left: int
    top: int
    right: int
    bottom: int

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels of the part, without a copy."""
        return pixels[self.top : self.bottom, self.left : self.right]


def tile_windows(height_px: int, width_px: int, config: TileConfig) -> list[Window]:
    """Return the parts that are detected apart, the whole picture first if it is one; none where nothing is cut.

    Tiles lie at even distances, the first and the last at the picture's edges. Where the picture is narrower than a
    tile, so is the tile.
    """
    if config.side_px == 0 or max(height_px, width_px) <= config.side_px:
        return []
    tiles = [
        Window(left, top, min(left + config.side_px, width_px), min(top + config.side_px, height_px))
        for top in _starts(height_px, config)
        for left in _starts(width_px, config)
    ]
    return [Window(0, 0, width_px, height_px), *tiles] if config.with_whole else tiles


def _starts(length_px: int, config: TileConfig) -> list[int]:
    free_px = length_px - config.side_px
    if free_px <= 0:
        return [0]
    step_px = max(config.side_px * (1 - config.overlap_frac), 1.0)
    count = int(np.ceil(free_px / step_px - 1e-9)) + 1
    return [round(start) for start in np.linspace(0, free_px, count).tolist()]


def merge_boxes(
    boxes_by_part: Sequence[NDArray[np.float32]],
    scores_N: NDArray[np.float32],
    class_ids_N: NDArray[np.int64],
    windows: Sequence[Window],
    size_px: tuple[int, int],
    nms_iou_threshold: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the boxes of all parts in pixels of the picture, and the rows that remain, by descending score.

    Of two boxes of one class with a larger IoU than ``nms_iou_threshold`` the lower score goes, as within a part. A box
    that reaches an inner border of its tile may be a piece of an object: it goes where more than that share of it lies
    in a box of its class that another part found, and it removes only what is a piece too.

    Args:
        boxes_by_part: (P) boxes of each part, (n, 4) as x1, y1, x2, y2 in pixels of the part.
        scores_N: of the boxes, part after part.
        class_ids_N: likewise.
        windows: (P) the parts.
        size_px: height and width of the picture.
        nms_iou_threshold: in [0, 1].
    """
    offsets = [np.array([w.left, w.top, w.left, w.top], dtype=np.float32) for w in windows]
    boxes_N4 = np.concatenate([boxes + offset for boxes, offset in zip(boxes_by_part, offsets, strict=True)])
    part_N = np.repeat(np.arange(len(windows)), list(map(len, boxes_by_part)))
    is_piece_N = np.concatenate(
        [_is_cut(boxes, window, size_px) for boxes, window in zip(boxes_by_part, windows, strict=True)]
    )
    return boxes_N4, _suppress(boxes_N4, scores_N, class_ids_N, part_N, is_piece_N, nms_iou_threshold)


def _is_cut(boxes_N4: NDArray[np.float32], window: Window, size_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether a box, in pixels of its tile, reaches a border of the tile that is no edge of the picture."""
    width, height = window.right - window.left, window.bottom - window.top
    return (
        ((boxes_N4[:, 0] <= _EDGE_PX) & (window.left > 0))
        | ((boxes_N4[:, 1] <= _EDGE_PX) & (window.top > 0))
        | ((boxes_N4[:, 2] >= width - _EDGE_PX) & (window.right < size_px[1]))
        | ((boxes_N4[:, 3] >= height - _EDGE_PX) & (window.bottom < size_px[0]))
    )


def _suppress(
    boxes_N4: NDArray[np.float32],
    scores_N: NDArray[np.float32],
    class_ids_N: NDArray[np.int64],
    part_N: NDArray[np.int64],
    is_piece_N: NDArray[np.bool_],
    threshold: float,
) -> NDArray[np.int64]:
    """Rows that remain, by descending score; what is no piece is asked first, then pieces, each by score."""
    kept: list[int] = []
    for class_id in np.unique(class_ids_N):
        rows = np.flatnonzero(class_ids_N == class_id)
        left = rows[np.lexsort((-scores_N[rows], is_piece_N[rows]))]
        while len(left):
            first, left = left[0], left[1:]
            kept.append(int(first))
            iou, share = _overlaps(boxes_N4[first], boxes_N4[left])
            is_inside = is_piece_N[left] & (part_N[left] != part_N[first]) & (share > threshold)
            left = left[(iou <= threshold) & ~is_inside]
    rows = np.array(kept, dtype=np.int64)
    return rows[np.lexsort((rows, -scores_N[rows]))]


def _overlaps(
    box_4: NDArray[np.float32], boxes_N4: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """IoU of a box with others, and the share of each of these that lies in it."""
    sides = np.minimum(box_4[2:], boxes_N4[:, 2:]) - np.maximum(box_4[:2], boxes_N4[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    area, areas = (box_4[2:] - box_4[:2]).prod(), (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
    tiny = np.finfo(np.float32).tiny
    return shared / np.maximum(area + areas - shared, tiny), shared / np.maximum(areas, tiny)
