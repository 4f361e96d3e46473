"""Compute average precision as PASCAL VOC does, at one IoU: 11 points (2007) or the area under the curve (2010 on).

Differs from COCO in more than the average: a box of n pixels from 1 to n has width n, each detection is held against
the object it overlaps most, taken or not, and an overlap of exactly the threshold is none.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.evaluation.coco_matching import Booleans, Floats, Integers, flatten_boxes, image_rows, read_crowds

VOC_IOU = 0.5
_ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)


class VocMetrics(TypedDict):
    """Average precision at IoU 0.5 in percent; None for a class without an object."""

    mAP: float | None
    per_class: dict[str, float | None]


class VocMatches(NamedTuple):
    """Detections of one class by descending score, without those on an object that does not count."""

    is_true_positive: Booleans
    """(D,)"""
    num_objects: int


def voc_map(truth: pa.Table, predictions: pa.Table, classes: Sequence[str], *, eleven_points: bool) -> VocMetrics:
    """Compute VOC AP of each class, and the mean over the classes that have objects.

    Args:
        truth: schemas.ANNOTATED; a crowd counts as a difficult object: neither found nor missed.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        classes: names by class index.
        eleven_points: VOC 2007's mean over 11 recalls instead of the area.
    """
    average = eleven_point_average if eleven_points else area_under_envelope
    per_class: dict[str, float | None] = {}
    for name, matches in zip(classes, match_voc(truth, predictions, len(classes)), strict=True):
        recall, precision = precision_recall(matches)
        per_class[name] = 100 * average(recall, precision) if matches.num_objects else None
    known = [value for value in per_class.values() if value is not None]
    return VocMetrics(mAP=float(np.mean(known)) if known else None, per_class=per_class)


def match_voc(truth: pa.Table, predictions: pa.Table, num_classes: int) -> list[VocMatches]:
    """Match detections with objects as VOC does; one entry per class."""
    object_class, object_image, object_xywh = flatten_boxes(truth, np.arange(truth.num_rows))
    is_difficult = read_crowds(truth)
    class_ids, image, xywh = flatten_boxes(predictions, image_rows(truth, predictions))
    scores = pc.list_flatten(predictions["scores"]).to_numpy().astype(np.float64)
    found = []
    for index in range(num_classes):
        objects, detections = np.flatnonzero(object_class == index), np.flatnonzero(class_ids == index)
        detections = detections[np.argsort(-scores[detections], kind="stable")]
        nearest, iou = _nearest_objects(
            xywh[detections], image[detections], object_xywh[objects], object_image[objects]
        )
        hit = iou > VOC_IOU
        on_difficult = np.zeros(len(detections), dtype=bool)
        on_difficult[hit] = is_difficult[objects][nearest[hit]]
        is_first = np.zeros(len(detections), dtype=bool)
        hits = np.flatnonzero(hit & ~on_difficult)
        is_first[hits[np.unique(nearest[hits], return_index=True)[1]]] = True
        found.append(VocMatches(is_first[~on_difficult], int((~is_difficult[objects]).sum())))
    return found


def _nearest_objects(
    xywh_D4: Floats, image_D: Integers, object_xywh_G4: Floats, object_image_G: Integers
) -> tuple[Integers, Floats]:
    """Return the object of its image that each detection overlaps most, the first of several, and the IoU, (D,)."""
    nearest, best = np.zeros(len(image_D), dtype=np.int64), np.zeros(len(image_D))
    order = np.argsort(object_image_G, kind="stable")
    sorted_image = object_image_G[order]
    for row in np.unique(image_D):
        start, stop = np.searchsorted(sorted_image, [row, row + 1])
        if start == stop:
            continue
        own, detections = order[start:stop], np.flatnonzero(image_D == row)
        iou = _inclusive_iou(xywh_D4[detections], object_xywh_G4[own])
        position = iou.argmax(axis=1)
        nearest[detections], best[detections] = own[position], iou[np.arange(len(detections)), position]
    return nearest, best


def _inclusive_iou(first_A4: Floats, second_B4: Floats) -> Floats:
    """Compute the IoU of boxes (x, y, w, h) whose last pixel counts, (A, B)."""
    low = np.maximum(first_A4[:, None, :2], second_B4[None, :, :2])
    high = np.minimum((first_A4[:, :2] + first_A4[:, 2:])[:, None], (second_B4[:, :2] + second_B4[:, 2:])[None])
    shared = np.prod(np.maximum(high - low + 1, 0), axis=2)
    area_A, area_B = (np.prod(boxes[:, 2:] + 1, axis=1) for boxes in (first_A4, second_B4))
    return np.asarray(shared / (area_A[:, None] + area_B[None] - shared))


def precision_recall(matches: VocMatches) -> tuple[Floats, Floats]:
    """Return recall and precision after each detection, (D,) each."""
    found = np.cumsum(matches.is_true_positive)
    return found / max(matches.num_objects, 1), found / np.arange(1, len(found) + 1)


def eleven_point_average(recall_D: Floats, precision_D: Floats) -> float:
    """Average the best precision at recall 0, 0.1, ... 1 or more (VOC 2007)."""
    best = [precision_D[recall_D >= recall].max(initial=0.0) for recall in _ELEVEN_RECALLS]
    return float(np.mean(best))


def area_under_envelope(recall_D: Floats, precision_D: Floats) -> float:
    """Integrate the best precision at this recall or more over the recall (VOC 2010 on)."""
    envelope = np.maximum.accumulate(precision_D[::-1])[::-1]
    return float((np.diff(recall_D, prepend=0.0) * envelope).sum())
