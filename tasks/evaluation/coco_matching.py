"""Match detections with labeled objects as the COCO evaluation does, all images and classes at once.

The same decisions as ``pycocotools.cocoeval``, without a loop over images. Within one image and class, detections
take an object in the order of their scores, so the n-th ones of all images and classes can take theirs together:
there are as many steps as the fullest image has detections of one class that overlap an object.

Shape letters: I images, K classes, T IoU thresholds, D detections, G objects, P pairs of a detection and an object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10, dtype=np.float64)
"""(T,) IoU from which a detection has found an object."""
ALL_AREAS = (0.0, 1e10)
AREA_RANGES_PX2 = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's sizes of objects: least and largest area of the box, in square pixels of the original."""
COCO_MAX_DETECTIONS = 100
"""Of one class on one image."""
_PAIRS_PER_BLOCK = 1 << 22  # bounds the memory: about 70 bytes a pair


@dataclass(frozen=True)
class Matches:
    """The detections of one class by descending score, and how many objects there are to find."""

    score: Floats
    """(D,)"""
    image_index: Integers
    """(D,) row of each detection's image in the validation set."""
    is_true_positive: Booleans
    """(T, D) whether the detection found an object."""
    is_ignored: Booleans
    """(T, D) whether it counts neither as found nor as false: it lies in a crowd region, or outside the area range."""
    num_objects: Integers
    """(I,) objects of the class on each image, without those that are ignored."""


@dataclass(frozen=True)
class _Boxes:
    """Boxes of many images, sorted by class and image."""

    group: Integers
    """Class times I plus row of the image."""
    xywh_px: Floats
    """(N, 4); widths, heights and areas from these, as COCO stores boxes, so that not even a rounding differs."""
    is_ignored: Booleans


@dataclass(frozen=True)
class _Objects(_Boxes):
    is_crowd: Booleans


@dataclass(frozen=True)
class _Detections(_Boxes):
    score: Floats


@dataclass(frozen=True)
class _Pairs:
    """Detections with the objects that they overlap enough."""

    detection: Integers
    object: Integers
    iou: Floats


def match_detections(
    truth: pa.Table,
    predictions: pa.Table,
    num_classes: int,
    *,
    area_range_px2: tuple[float, float] = ALL_AREAS,
    max_detections: int | None = None,
) -> list[Matches]:
    """Match detections with objects at the ten COCO thresholds; one entry per class.

    Args:
        truth: image_id, boxes_xyxy, class_ids; with a column ``is_crowd`` (list of bool beside the boxes), boxes
            that enclose a crowd of objects, any number of detections inside them is ignored.
        predictions: image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        num_classes: K; boxes of other classes are left out.
        area_range_px2: objects outside are ignored, and so are detections outside that found none.
        max_detections: detections per image and class that count, those with the highest scores; None: COCO's 100, and
            twice the most objects of a class on an image where that is over 100 (docs/method.md#protocols).

    Raises:
        ValueError: a prediction is of an image that ``truth`` does not have.
    """
    num_images = truth.num_rows
    objects = _read_objects(truth, num_classes, area_range_px2)
    limit = _detection_limit(objects) if max_detections is None else max_detections
    detections = _read_detections(truth, predictions, num_classes, area_range_px2, limit)
    pairs = _overlapping_pairs(detections, objects)
    matched, in_ignored_object = _assign_objects(pairs, detections, objects)
    ignored = np.where(matched, in_ignored_object, detections.is_ignored)
    counted_group = objects.group[~objects.is_ignored]
    num_objects = np.bincount(counted_group, minlength=num_classes * num_images).reshape(num_classes, num_images)
    bounds = np.searchsorted(detections.group, np.arange(num_classes + 1) * num_images)
    entries = []
    for index, (start, stop) in enumerate(pairwise(bounds)):
        # Stable, so that equal scores stay in the order of the images, as in pycocotools.
        order = start + np.argsort(-detections.score[start:stop], kind="stable")
        image_index = detections.group[order] - index * num_images
        true_positive = matched[:, order] & ~ignored[:, order]
        entries.append(
            Matches(detections.score[order], image_index, true_positive, ignored[:, order], num_objects[index])
        )
    return entries


def _read_objects(truth: pa.Table, num_classes: int, area_range_px2: tuple[float, float]) -> _Objects:
    class_ids, image, xywh_px = flatten_boxes(truth, np.arange(truth.num_rows))
    crowd = read_crowds(truth)
    group = class_ids * truth.num_rows + image
    area_px2 = xywh_px[:, 2] * xywh_px[:, 3]
    ignored = crowd | (area_px2 < area_range_px2[0]) | (area_px2 > area_range_px2[1])
    known = (class_ids >= 0) & (class_ids < num_classes)
    order = np.lexsort((ignored, group))
    order = order[known[order]]
    return _Objects(group[order], xywh_px[order], ignored[order], crowd[order])


def _detection_limit(objects: _Objects) -> int:
    """COCO's limit would cap the recall where an image has more objects of a class, as large pictures often do."""
    most = int(np.bincount(objects.group[~objects.is_crowd]).max(initial=0))
    return 2 * most if most > COCO_MAX_DETECTIONS else COCO_MAX_DETECTIONS


def read_crowds(truth: pa.Table) -> Booleans:
    """Return whether each box encloses a crowd, (N,); a missing column or list says that none does."""
    num_boxes = _lengths(truth["class_ids"])
    crowd = np.zeros(num_boxes.sum(), dtype=bool)
    if "is_crowd" in truth.column_names:
        num_stated = _lengths(truth["is_crowd"])
        is_stated = num_stated > 0
        if (num_stated != num_boxes)[is_stated].any():
            raise ValueError("is_crowd has another length than class_ids, expected one entry for each box")
        crowd[np.repeat(is_stated, num_boxes)] = _values(pc.fill_null(pc.list_flatten(truth["is_crowd"]), False))
    return crowd


def _read_detections(
    truth: pa.Table,
    predictions: pa.Table,
    num_classes: int,
    area_range_px2: tuple[float, float],
    max_detections: int,
) -> _Detections:
    class_ids, image, xywh_px = flatten_boxes(predictions, image_rows(truth, predictions))
    score = _values(pc.list_flatten(predictions["scores"])).astype(np.float64)
    group = class_ids * truth.num_rows + image
    known = (class_ids >= 0) & (class_ids < num_classes)
    order = np.lexsort((-score, group))
    order = order[known[order]]
    order = order[_rank_in_run(group[order]) < max_detections]
    area_px2 = xywh_px[order, 2] * xywh_px[order, 3]
    outside = (area_px2 < area_range_px2[0]) | (area_px2 > area_range_px2[1])
    return _Detections(group[order], xywh_px[order], outside, score[order])


def image_rows(truth: pa.Table, predictions: pa.Table) -> Integers:
    """Return the row in ``truth`` of each prediction's image.

    Raises:
        ValueError: a prediction is of an image that ``truth`` does not have.
    """
    row = pc.index_in(predictions["image_id"], value_set=truth["image_id"].combine_chunks())
    if row.null_count:
        position = int(np.flatnonzero(_values(pc.is_null(row)))[0])
        raise ValueError(f"image_id is {predictions['image_id'][position]}, expected an image of the validation set")
    return _values(row).astype(np.int64)


def flatten_boxes(table: pa.Table, image_of_row: Integers) -> tuple[Integers, Integers, Floats]:
    """Return class, image and (x, y, width, height) in pixels of every box of a table, (N,), (N,) and (N, 4)."""
    class_ids = _values(pc.list_flatten(table["class_ids"])).astype(np.int64)
    xyxy_px = _values(pc.list_flatten(table["boxes_xyxy"])).astype(np.float64).reshape(-1, 4)
    if len(xyxy_px) != len(class_ids):
        raise ValueError(f"boxes_xyxy has {len(xyxy_px)} boxes, expected one for each of {len(class_ids)} class_ids")
    xywh_px = np.hstack([xyxy_px[:, :2], xyxy_px[:, 2:] - xyxy_px[:, :2]])
    return class_ids, np.repeat(image_of_row, _lengths(table["class_ids"])), xywh_px


def _lengths(column: pa.ChunkedArray) -> Integers:
    """Entries of each row's list."""
    return _values(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)


def _values(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy())


def _rank_in_run(sorted_values: Integers) -> Integers:
    """Position of each entry among the entries with the same value."""
    starts = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]])[: len(sorted_values)]
    lengths = np.diff(np.r_[starts, len(sorted_values)])
    return np.arange(len(sorted_values)) - np.repeat(starts, lengths)


def _overlapping_pairs(detections: _Detections, objects: _Objects) -> _Pairs:
    """Pairs of one image and class that reach the lowest threshold."""
    first = np.searchsorted(objects.group, detections.group, side="left")
    num_objects = np.searchsorted(objects.group, detections.group, side="right") - first
    parts = []
    for start, stop in _blocks(num_objects):
        count = num_objects[start:stop]
        detection = np.repeat(np.arange(start, stop), count)
        offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        object_index = np.repeat(first[start:stop], count) + offset
        iou = _paired_iou(detections.xywh_px[detection], objects.xywh_px[object_index], objects.is_crowd[object_index])
        near = iou >= IOU_THRESHOLDS[0]
        parts.append((detection[near], object_index[near], iou[near]))
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _blocks(num_pairs: Integers) -> Iterator[tuple[int, int]]:
    """Ranges of detections with a bounded number of pairs each; at least one range."""
    block = np.cumsum(num_pairs) // _PAIRS_PER_BLOCK
    starts = [0, *(np.flatnonzero(block[1:] != block[:-1]) + 1).tolist()]
    return zip(starts, [*starts[1:], len(num_pairs)], strict=True)


def _paired_iou(detection_P4: Floats, object_P4: Floats, is_crowd_P: Booleans) -> Floats:
    """IoU of each pair; with a crowd, the share of the detection that lies inside. Term by term as pycocotools."""
    side_P2 = np.minimum(detection_P4[:, :2] + detection_P4[:, 2:], object_P4[:, :2] + object_P4[:, 2:])
    side_P2 -= np.maximum(detection_P4[:, :2], object_P4[:, :2])
    overlaps = (side_P2 > 0).all(axis=1)
    shared = np.where(overlaps, side_P2[:, 0] * side_P2[:, 1], 0.0)
    detection_area = detection_P4[:, 2] * detection_P4[:, 3]
    union = np.where(is_crowd_P, detection_area, detection_area + object_P4[:, 2] * object_P4[:, 3] - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=overlaps))


def _assign_objects(pairs: _Pairs, detections: _Detections, objects: _Objects) -> tuple[Booleans, Booleans]:
    """Whether each detection takes an object, and whether that one is ignored; (T, D) each.

    A detection takes, of the free objects at its threshold, the one with the largest IoU, the last of several;
    objects that are ignored only where there is no other. A crowd is never taken up.
    """
    num_thresholds = len(IOU_THRESHOLDS)
    matched = np.zeros((num_thresholds, len(detections.score)), dtype=bool)
    in_ignored = np.zeros_like(matched)
    taken = np.zeros((num_thresholds, len(objects.group)), dtype=bool)
    for detection, object_index, iou in _steps(pairs, detections, objects):
        starts = np.flatnonzero(np.r_[True, detection[1:] != detection[:-1]])
        free = ~taken[:, object_index] | objects.is_crowd[object_index]
        allowed = free & (iou >= IOU_THRESHOLDS[:, None])
        position = np.where(allowed, np.arange(len(iou)), len(iou))
        chosen = np.minimum.reduceat(position, starts, axis=1)
        threshold, column = np.nonzero(chosen < len(iou))
        found = object_index[chosen[threshold, column]]
        taken[threshold, found] = True
        matched[threshold, detection[starts][column]] = True
        in_ignored[threshold, detection[starts][column]] = objects.is_ignored[found]
    return matched, in_ignored


def _steps(pairs: _Pairs, detections: _Detections, objects: _Objects) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield the pairs of the first detection of every image and class, then those of the second, and so on.

    The pairs of one detection are in the order in which it prefers the objects.
    """
    with_pair = np.unique(pairs.detection)
    step_of = np.zeros(len(detections.score), dtype=np.int64)
    step_of[with_pair] = _rank_in_run(detections.group[with_pair])
    step = step_of[pairs.detection]
    ignored = objects.is_ignored[pairs.object]
    order = np.lexsort((-pairs.object, -pairs.iou, ignored, pairs.detection, step))
    detection, object_index, iou, step = (values[order] for values in (pairs.detection, pairs.object, pairs.iou, step))
    bounds = np.searchsorted(step, np.arange(int(step[-1]) + 2)) if len(step) else np.zeros(1, dtype=np.int64)
    for start, stop in pairwise(bounds):
        yield detection[start:stop], object_index[start:stop], iou[start:stop]
