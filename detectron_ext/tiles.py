"""Detect on the parts of large pictures and merge the results; cut tiles for training (docs/method.md#tiles).

Shape shorthand: N detections over all parts of a picture, P parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detectron_ext.augmentation import Example, Pixels
from detectron_ext.inference import Detections
from detectron_ext.losses import CROWD_LABEL
from detectron_ext.objectness_doubt import ObjectnessDoubt
from detectron_ext.tile_windows import Window, merge_boxes

_MIN_VISIBLE_FRAC = 0.5
"""Of an object that a random tile cuts, the share that makes it an object of the tile; less is an ignored region."""


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

    Args:
        found: (P) results, boxes in pixels of the parts.
        windows: (P) the parts.
        size_px: height and width of the picture.
        nms_iou_threshold: of ``merge_boxes``.

    Returns:
        Detections by descending score, boxes in pixels of the picture. The embedding is that of the whole picture where
        it is a part, else the mean of the tiles'; doubt is the largest of any part, its map that of the whole picture.
    """
    scores_N, class_ids_N, class_probs_NK = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("scores", "class_ids", "class_probs")
    )
    boxes_by_part = [part.boxes_xyxy for part in found]
    boxes_N4, kept = merge_boxes(boxes_by_part, scores_N, class_ids_N, windows, size_px, nms_iou_threshold)
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
        _largest_doubt(found, is_whole),
    )


def _largest_doubt(found: Sequence[Detections], is_whole: Sequence[bool]) -> ObjectnessDoubt | None:
    measured = [(part.doubt, whole) for part, whole in zip(found, is_whole, strict=True) if part.doubt is not None]
    if not measured:
        return None
    maps = [doubt.map_percent for doubt, whole in measured if whole]
    return ObjectnessDoubt(max(doubt.top_mean for doubt, _ in measured), maps[0] if maps else None)


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
