"""The three metrics of one image and the uncertainty score (docs/method.md#metrics, docs/method.md#eq-15).

Shape shorthand: N boxes of one image, K foreground classes, P images of the pool. Arrays are NumPy's,
because the input is the stored detections of a pool; no model is needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_MAX_BOXES_AT_ONCE = 2**13
"""Boxes in one array, 64 KiB each: the dozen arrays of the IoU then fit in a processor's cache."""
_MIN_BOXES_IN_ROWS = 2**11
"""Fewer boxes are compared all with all at once: twice the work, but a call of NumPy costs more than they do."""
NEIGHBOR_IOU = 0.3
"""Two boxes of an image with a larger IoU are neighbors."""


class UncertaintyMetrics(NamedTuple):
    """Raw metrics of one image; all 0 without a detection."""

    confidence: float
    entropy: float
    overlap: float


def confidence(scores_N: Floats, mode: str) -> float:
    """Compute the confidence of one image from its scores (docs/method.md#eq-2); 0 for N = 0.

    ``sum``: sum of the scores, >= 0 (paper). ``least_confidence``: mean of 1 - score, in [0, 1].
    """
    if len(scores_N) == 0:
        return 0.0
    return float(scores_N.sum()) if mode == "sum" else float((1 - scores_N).mean())


def posterior_entropy(class_probs_NK: Floats) -> Floats:
    """Compute ``H(p) = -sum_k p_k ln p_k`` of every row, (N,) nats in [0, ln(K+1)]; 0 ln 0 is 0."""
    p_KN = np.array(class_probs_NK.T, dtype=np.float64, order="C")  # sums over the first axis are the fast ones
    np.clip(p_KN, 0, 1, out=p_KN)
    logs_KN = np.maximum(p_KN, np.finfo(np.float64).tiny)
    np.log(logs_KN, out=logs_KN)
    return np.asarray(-np.multiply(p_KN, logs_KN, out=logs_KN).sum(axis=0))


def entropy(class_probs_NK: Floats, mode: str) -> float:
    """Compute the ``sum`` (paper) or ``mean`` of the boxes' entropies (docs/method.md#eq-3), nats; 0 for N = 0."""
    if len(class_probs_NK) == 0:
        return 0.0
    entropies_N = posterior_entropy(class_probs_NK)
    return float(entropies_N.sum() if mode == "sum" else entropies_N.mean())


def pairwise_iou(first_A4: Floats, second_B4: Floats) -> Floats:
    """Compute the IoU of XYXY boxes (docs/method.md#eq-4), (A, B) in [0, 1]; 0 where a box has no area."""
    first, second = first_A4.astype(np.float64), second_B4.astype(np.float64)
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.clip(np.minimum(first[:, None, 2:], second[None, :, 2:]) - top_left, 0, None)
    intersection_AB = sides.prod(axis=2)
    area_A = np.clip(first[:, 2:] - first[:, :2], 0, None).prod(axis=1)
    area_B = np.clip(second[:, 2:] - second[:, :2], 0, None).prod(axis=1)
    union_AB = area_A[:, None] + area_B[None, :] - intersection_AB
    return np.divide(intersection_AB, union_AB, out=np.zeros_like(intersection_AB), where=union_AB > 0)


def overlap(boxes_N4: Floats) -> float:
    """Compute the mean IoU over the N(N-1)/2 pairs of boxes (docs/method.md#eq-5), in [0, 1]; 0 for N < 2."""
    count = len(boxes_N4)
    if count < 2:
        return 0.0
    return float(pairwise_iou(boxes_N4, boxes_N4)[np.triu_indices(count, k=1)].mean())


def uncertainty_metrics(
    boxes_N4: Floats, scores_N: Floats, class_probs_NK: Floats, *, confidence_mode: str, entropy_mode: str
) -> UncertaintyMetrics:
    """Compute the three raw metrics of one image; the form for one image of ``batched_uncertainty_metrics``."""
    return UncertaintyMetrics(
        confidence(scores_N, confidence_mode), entropy(class_probs_NK, entropy_mode), overlap(boxes_N4)
    )


class BoxOverlaps(NamedTuple):
    """IoU among the boxes of each of P images; B boxes in all. 0 for a box that is alone."""

    mean_P: Floats
    """Mean over the image's N(N-1)/2 pairs (docs/method.md#eq-5), in [0, 1]."""
    max_B: Floats
    """Highest IoU of the box with another one of its image, in [0, 1]."""
    num_neighbors_B: Floats
    """Other boxes of its image whose IoU with it is above ``NEIGHBOR_IOU``."""


def sum_by_image(values_B: NDArray[Any], num_boxes_P: NDArray[np.int64]) -> Floats:
    """Sum the rows of ``values_B``, (B,) or (B, C), over the boxes of each image: (P,) or (P, C), float64."""
    sums = np.zeros((len(num_boxes_P), *values_B.shape[1:]))
    has_boxes_P = num_boxes_P > 0
    if has_boxes_P.any():
        first_box = (np.cumsum(num_boxes_P) - num_boxes_P)[has_boxes_P]
        sums[has_boxes_P] = np.add.reduceat(values_B.astype(np.float64, copy=False), first_box, axis=0)
    return sums


def log_size_and_aspect(boxes_B4: NDArray[Any]) -> tuple[Floats, Floats]:
    """Compute log of the side of a square of the same area in px, and log of height by width, (B,) each; sides >= 1."""
    sides_2B = np.maximum(boxes_B4.T[2:].astype(np.float64) - boxes_B4.T[:2], 1)
    return np.log(sides_2B[0] * sides_2B[1]) / 2, np.log(sides_2B[1] / sides_2B[0])


def batched_uncertainty_metrics(
    scores_B: Floats,
    entropy_B: Floats,
    overlaps: BoxOverlaps,
    num_boxes_P: NDArray[np.int64],
    *,
    confidence_mode: str,
    entropy_mode: str,
) -> NDArray[np.float64]:
    """Compute ``uncertainty_metrics`` of many images at once (docs/method.md#metrics).

    Args:
        scores_B: scores of the boxes of P images, one image after another.
        entropy_B: their ``posterior_entropy``.
        overlaps: their IoU, from ``box_overlaps``.
        num_boxes_P: boxes of each image; their sum is B.
        confidence_mode: as in ``confidence``.
        entropy_mode: as in ``entropy``.

    Returns:
        (P, 3) confidence, entropy, overlap; 0 without a box.
    """
    divisor_P = np.maximum(num_boxes_P, 1)
    if confidence_mode == "sum":
        confidence_P = sum_by_image(scores_B, num_boxes_P)
    else:
        confidence_P = sum_by_image(1 - scores_B, num_boxes_P) / divisor_P
    entropy_P = sum_by_image(entropy_B, num_boxes_P)
    if entropy_mode == "mean":
        entropy_P /= divisor_P
    return np.stack([confidence_P, entropy_P, overlaps.mean_P], axis=1)


def box_overlaps(boxes_B4: Floats, num_boxes_P: NDArray[np.int64]) -> BoxOverlaps:
    """Compare every box with the others of its image.

    Args:
        boxes_B4: the boxes of P images one after another, XYXY.
        num_boxes_P: boxes of each image; their sum is B.
    """
    num_boxes = len(boxes_B4)
    corners_4B = np.zeros((4, num_boxes + 1))  # the last one fills up images with fewer boxes: it has no area
    corners_4B[:, :num_boxes] = boxes_B4.T
    mean_P, max_B, num_neighbors_B = np.zeros(len(num_boxes_P)), np.zeros(num_boxes + 1), np.zeros(num_boxes + 1)
    first_box_P = np.cumsum(num_boxes_P) - num_boxes_P
    rest = np.flatnonzero(num_boxes_P > 1)
    rest = rest[np.argsort(-num_boxes_P[rest], kind="stable")]
    while len(rest):  # images with about as many boxes form one array
        largest = int(num_boxes_P[rest[0]])
        chunk, rest = np.split(rest, [max(1, _MAX_BOXES_AT_ONCE // largest)])
        count_M, number_N1 = num_boxes_P[chunk], np.arange(largest)[:, None]
        index_NM = np.where(number_N1 < count_M, first_box_P[chunk] + number_N1, num_boxes)
        compare = _compare_in_rows if index_NM.size >= _MIN_BOXES_IN_ROWS else _compare_at_once
        sum_M, max_B[index_NM], num_neighbors_B[index_NM] = compare(corners_4B.take(index_NM, axis=1))
        mean_P[chunk] = 2 * sum_M / (count_M * (count_M - 1))
    return BoxOverlaps(mean_P, max_B[:-1], num_neighbors_B[:-1])


def _compare_at_once(corners_4NM: Floats) -> tuple[Floats, Floats, Floats]:
    """Compare the N boxes of each of M images by their IoU (docs/method.md#eq-4).

    Returns:
        Sum over the pairs of an image, (M,); the highest of each box, (N, M); the number of its neighbors, (N, M).
    """
    x1, y1, x2, y2 = corners_4NM
    area = np.clip(x2 - x1, 0, None) * np.clip(y2 - y1, 0, None)
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    union = area[:, None] + area - intersection
    iou_NNM = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    own = np.arange(len(area))
    iou_NNM[own, own] = 0
    return iou_NNM.sum(axis=(0, 1)) / 2, iou_NNM.max(axis=0), (iou_NNM > NEIGHBOR_IOU).sum(axis=0)


def _compare_in_rows(corners_4NM: Floats) -> tuple[Floats, Floats, Floats]:
    """Return what ``_compare_at_once`` does, box by box with those after it: each pair once, in long rows of images."""
    x1, y1, x2, y2 = corners_4NM
    area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    sum_M, max_NM, neighbors_NM = np.zeros(area.shape[1]), np.zeros_like(area), np.zeros_like(area)
    for box in range(len(area) - 1):
        after = slice(box + 1, None)
        iou = np.minimum(x2[box], x2[after])
        iou -= np.maximum(x1[box], x1[after])
        height = np.minimum(y2[box], y2[after])
        height -= np.maximum(y1[box], y1[after])
        iou = np.multiply(np.maximum(iou, 0, out=iou), np.maximum(height, 0, out=height), out=iou)
        union = np.subtract(area[box] + area[after], iou, out=height)
        np.maximum(union, np.finfo(np.float64).tiny, out=union)  # where it is 0, so is the intersection
        iou /= union
        sum_M += iou.sum(axis=0)
        is_neighbor = iou > NEIGHBOR_IOU
        neighbors_NM[after] += is_neighbor
        neighbors_NM[box] += is_neighbor.sum(axis=0)
        np.maximum(max_NM[box], iou.max(axis=0), out=max_NM[box])
        np.maximum(max_NM[after], iou, out=max_NM[after])
    return sum_M, max_NM, neighbors_NM


def average_ranks(values_N: Floats) -> Floats:
    """Return the rank of each value from 1 on, (N,); equal values share the mean of their ranks.

    As ``scipy.stats.rankdata``, whose import takes longer than most stages.
    """
    ordered_N = np.sort(values_N)
    return (np.searchsorted(ordered_N, values_N) + np.searchsorted(ordered_N, values_N, side="right") + 1) / 2


def normalize(raw_P: Floats, mode: str) -> Floats:
    """Scale one metric to [0, 1] over the pool (docs/method.md#eq-6).

    Args:
        raw_P: (P,) raw values, finite.
        mode: ``quantile``: share of the other P - 1 images with a smaller value; equal values share the lowest
            rank, so that all images at the minimum get 0, however many they are; robust to outliers.
            ``minmax``: (x - min) / (max - min). ``max``: x / max (ActiveTeacher). ``none``: unchanged.

    Returns:
        (P,). A metric with all values equal gives 0 (except ``none``), so that it does not change the score.
    """
    raw = raw_P.astype(np.float64)
    if mode == "none" or len(raw) == 0:
        return raw
    low, high = float(raw.min()), float(raw.max())
    if high == low:
        return np.zeros_like(raw)
    if mode == "quantile":
        num_smaller_P = np.searchsorted(np.sort(raw), raw)
        return np.asarray(num_smaller_P / (len(raw) - 1))
    return (raw - low) / (high - low) if mode == "minmax" else raw / high


def impute_no_detections(values_P: Floats, no_detections_P: NDArray[np.bool_], policy: str) -> Floats:
    """Set the normalized metric of images without detections by policy (docs/method.md#eq-7).

    Args:
        values_P: (P,) normalized metric.
        no_detections_P: (P,) true where the teacher found nothing.
        policy: ``min`` gives 0, ``median`` the median and ``max`` the maximum of the other images.
            ``estimate`` leaves the values, which come from ``estimate_undetected``.
    """
    if policy == "estimate":
        return values_P
    detected = values_P[~no_detections_P]
    fill_value = 0.0
    if policy != "min" and len(detected):
        fill_value = float(np.median(detected) if policy == "median" else detected.max())
    return np.where(no_detections_P, fill_value, values_P)


def estimate_undetected(raw_P: Floats, num_boxes_P: Floats, expected_misses_P: Floats, mode: str) -> Floats:
    """Estimate the raw confidence or entropy of images without detections (docs/method.md#eq-7).

    They count as if the objects missed there, and nothing else, were boxes of the pool's average kind.

    Args:
        raw_P: (P,) raw metric of all images of the pool.
        num_boxes_P: (P,) their boxes.
        expected_misses_P: (P,) objects expected to be missed, >= 0.
        mode: ``sum``: the metric is a sum over boxes; otherwise it is their mean, which is 0 where nothing was missed.

    Returns:
        (P,) the estimate where there is no box, else the raw value.
    """
    total_P = raw_P if mode == "sum" else raw_P * num_boxes_P
    mean_of_box = total_P.sum() / max(num_boxes_P.sum(), 1)
    num_missed_P = expected_misses_P if mode == "sum" else 1 - np.exp(-expected_misses_P)
    return np.where(num_boxes_P > 0, raw_P, mean_of_box * num_missed_P)


def uncertainty(metrics_P3: Floats, weights_P3: Floats) -> Floats:
    """Compute ``U = w_C C + w_E E + w_O O`` (docs/method.md#eq-15), (P,).

    In [0, 1] when the metrics are in [0, 1] and the weights sum to 1.
    """
    return np.asarray((metrics_P3 * weights_P3).sum(axis=1))


def grouped_spearman(groups: Sequence[tuple[Floats, Floats]]) -> float | None:
    """Compute the mean Spearman rank correlation over groups, weighted by size.

    A group holds the images of one teacher, because losses of two teachers have different scales.

    Args:
        groups: pairs of equally long arrays; those with under 3 members or a constant side are left out.

    Returns:
        In [-1, 1], or None without a group that is kept.
    """
    total, weight = 0.0, 0
    for first, second in groups:
        if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
            continue
        ranks = np.corrcoef(average_ranks(first), average_ranks(second))[0, 1]
        total, weight = total + float(ranks) * len(first), weight + len(first)
    return total / weight if weight else None
