"""Cut large pictures into overlapping tiles, detect on each, and merge what they find (docs/method.md#tiles).

Shape shorthand: N detections over all parts of a picture, P parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectron_ext.augmentation import Example, Pixels
from detectron_ext.inference import Detections
from detectron_ext.losses import CROWD_LABEL

_EDGE_PX = 2.0
"""A box that comes this near to a border of a tile may be cut by it."""
_MIN_VISIBLE_FRAC = 0.5
"""Of an object that a random tile cuts, the share that makes it an object of the tile; less is an ignored region."""


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

    def cut(self, pixels: Pixels) -> Pixels:
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


def detect_windows(
    pixels: Pixels,
    windows: Sequence[Window],
    detect: Callable[[Sequence[Pixels]], list[list[Detections]]],
    *,
    batch_size: int,
    nms_iou_threshold: float,
) -> list[Detections]:
    """Detect on all parts of a picture and merge the results; memory is that of the picture and of one batch of parts.

    Args:
        pixels: (H, W, 3) uint8.
        windows: of ``tile_windows``, at least one.
        detect: gives, for some parts, the results of each part by detector.
        batch_size: parts per call of ``detect``.
        nms_iou_threshold: of ``merge``.

    Returns:
        One result per detector.
    """
    by_part: list[list[Detections]] = []
    for batch in _batches(windows, batch_size):
        by_part += detect([window.cut(pixels) for window in batch])
    size_px = pixels.shape[0], pixels.shape[1]
    return [merge(found, windows, size_px, nms_iou_threshold) for found in map(list, zip(*by_part, strict=True))]


def _batches(windows: Sequence[Window], batch_size: int) -> Iterator[Sequence[Window]]:
    for first in range(0, len(windows), batch_size):
        yield windows[first : first + batch_size]


def merge(
    found: Sequence[Detections], windows: Sequence[Window], size_px: tuple[int, int], nms_iou_threshold: float
) -> Detections:
    """Merge the detections of all parts of a picture, which keep their scores, posteriors and region features.

    Of two boxes of one class with a larger IoU than ``nms_iou_threshold`` the lower score goes, as within a part. A box
    that reaches an inner border of its tile may be a piece of an object: it goes where more than that share of it lies
    in a box of its class that another part found, and it removes only what is a piece too.

    Args:
        found: (P) results, boxes in pixels of the parts.
        windows: (P) the parts.
        size_px: height and width of the picture.
        nms_iou_threshold: in [0, 1].

    Returns:
        Detections by descending score, boxes in pixels of the picture. The embedding is that of the whole picture where
        it is a part, else the mean of the tiles'.
    """
    offsets = [np.array([w.left, w.top, w.left, w.top], dtype=np.float32) for w in windows]
    boxes_N4 = np.concatenate([part.boxes_xyxy + offset for part, offset in zip(found, offsets, strict=True)])
    scores_N, class_ids_N, class_probs_NK = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("scores", "class_ids", "class_probs")
    )
    part_N = np.repeat(np.arange(len(found)), [len(part.scores) for part in found])
    is_piece_N = np.concatenate(
        [_is_cut(part.boxes_xyxy, window, size_px) for part, window in zip(found, windows, strict=True)]
    )
    kept = _suppress(boxes_N4, scores_N, class_ids_N, part_N, is_piece_N, nms_iou_threshold)
    is_whole = [window == Window(0, 0, size_px[1], size_px[0]) for window in windows]
    embeddings = [part.embedding for part, whole in zip(found, is_whole, strict=True) if whole or not any(is_whole)]
    has_regions = all(len(part.stability) == len(part.scores) for part in found)
    return Detections(
        boxes_N4[kept],
        scores_N[kept],
        class_ids_N[kept],
        class_probs_NK[kept],
        np.mean(embeddings, axis=0, dtype=np.float32),
        np.concatenate([part.stability for part in found])[kept] if has_regions else found[0].stability,
        np.concatenate([part.region_features for part in found])[kept] if has_regions else found[0].region_features,
    )


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


def random_tile(pixels: Pixels, example: Example, side_px: int, rng: np.random.Generator) -> tuple[Pixels, Example]:
    """Cut a tile at a random place out of a training image; around one of its objects, if it has any.

    Args:
        pixels: (H, W, 3) uint8; returned as they are where no side is longer than a tile.
        example: its labels.
        side_px: of the tile.
        rng: of object and place.

    Returns:
        The tile, and the example with the labels that are visible in it, in pixels of the tile. Of an object that the
        border cuts, at least half must be visible; else what is visible is neither object nor background.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= side_px:
        return pixels, example
    objects = np.flatnonzero(example.class_ids != CROWD_LABEL)
    chosen = example.boxes_xyxy[objects[rng.integers(len(objects))]] if len(objects) else None
    window = _window_around(chosen, (height, width), side_px, rng)
    return window.cut(pixels), _visible(example, window)


def tile_with_object(
    pixels: Pixels, example: Example, box: int, side_px: int, rng: np.random.Generator
) -> tuple[Pixels, Example]:
    """Cut a tile around one object, whose number among the example's boxes stays the same; see ``random_tile``."""
    height, width = pixels.shape[:2]
    if max(height, width) <= side_px:
        return pixels, example
    window = _window_around(example.boxes_xyxy[box], (height, width), side_px, rng)
    return window.cut(pixels), replace(example, boxes_xyxy=_clipped(example.boxes_xyxy, window))


def _window_around(
    box_4: NDArray[np.float32] | None, size_px: tuple[int, int], side_px: int, rng: np.random.Generator
) -> Window:
    """A tile at a random place that holds all of a box if it fits in, else the middle of the box."""
    starts = []
    for axis, length in ((1, size_px[0]), (0, size_px[1])):
        low, high = 0, max(length - side_px, 0)
        if box_4 is not None:
            begin, end = float(box_4[axis]), float(box_4[axis + 2])
            if end - begin > side_px:
                begin = end = (begin + end) / 2
            low = min(max(int(np.ceil(end)) - side_px, 0), high)
            high = min(max(int(np.floor(begin)), low), high)
        starts.append(int(rng.integers(low, high + 1)))
    top, left = starts
    return Window(left, top, min(left + side_px, size_px[1]), min(top + side_px, size_px[0]))


def _clipped(boxes_N4: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    moved = boxes_N4 - np.array([window.left, window.top, window.left, window.top], dtype=np.float32)
    width, height = window.right - window.left, window.bottom - window.top
    return np.clip(moved, 0, np.array([width, height, width, height], dtype=np.float32)).astype(np.float32)


def _visible(example: Example, window: Window) -> Example:
    boxes = _clipped(example.boxes_xyxy, window)
    areas, whole = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, example.boxes_xyxy))
    is_seen = areas > 0
    is_object = areas >= _MIN_VISIBLE_FRAC * whole
    class_ids = np.where(is_object, example.class_ids, CROWD_LABEL)
    return replace(example, boxes_xyxy=boxes[is_seen], class_ids=class_ids[is_seen])
