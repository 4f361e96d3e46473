"""Average precision of matched detections, for one or many weightings of the images.

Shape letters: B weightings, I images, K classes, T IoU thresholds, D detections of one class.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.evaluation.coco_matching import Booleans, Floats, Integers, Matches

RECALLS: Floats = np.linspace(0.0, 1.0, 101, dtype=np.float64)
"""Recall at which COCO reads off the precision."""
_ENTRIES_PER_BLOCK = 1 << 22


def average_precisions(matches: Sequence[Matches], counts_BI: Integers) -> Floats:
    """Compute COCO's average precision at each threshold, with image i counted ``counts_BI[b, i]`` times.

    Exactly COCO's, but for the order of detections with equal scores on copies of one image.

    Args:
        matches: K entries.
        counts_BI: (B, I), not negative.

    Returns:
        (B, K, T) in 0..1. NaN for a class without an object.
    """
    return np.stack([_class_precisions(entry, counts_BI) for entry in matches], axis=1)


def _class_precisions(entry: Matches, counts_BI: Integers) -> Floats:
    """One class of ``average_precisions``, (B, T)."""
    num_objects = counts_BI @ entry.num_objects
    ap = np.zeros((len(counts_BI), len(entry.is_true_positive)))
    if len(entry.image_index):
        for start, stop in _blocks(len(counts_BI), len(entry.image_index)):
            weight = counts_BI[start:stop, entry.image_index]
            objects = np.maximum(num_objects[start:stop], 1)
            detections = np.cumsum(weight, axis=1)
            for threshold, (found, ignored) in enumerate(zip(entry.is_true_positive, entry.is_ignored, strict=True)):
                kept = np.cumsum(weight * ~ignored, axis=1) if ignored.any() else detections
                ap[start:stop, threshold] = _interpolated_precision(weight, kept, found, objects)
    ap[num_objects == 0] = np.nan
    return ap


def _interpolated_precision(weight_BD: Integers, kept_BD: Integers, found: Booleans, objects_B: Integers) -> Floats:
    """Mean over ``RECALLS`` of the largest precision at this recall or a higher one; 0 where it is not reached.

    Only true positives matter: precision is largest, and recall grows, at one of them.
    """
    true_positives = np.cumsum(weight_BD[:, found], axis=1)
    precision = true_positives / np.maximum(kept_BD[:, found], 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, true_positives / objects_B[:, None], side="right")
    newly_reached = np.diff(reached, axis=1, prepend=0)
    return np.asarray((envelope * newly_reached).sum(axis=1) / len(RECALLS))


def _blocks(num_weightings: int, num_detections: int) -> Iterator[tuple[int, int]]:
    size = max(_ENTRIES_PER_BLOCK // num_detections, 1)
    for start in range(0, num_weightings, size):
        yield start, min(start + size, num_weightings)
