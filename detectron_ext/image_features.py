"""Input features of the DWA network for one image (docs/method.md#dwa)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import BoxOverlaps, Floats, box_overlaps, log_size_and_aspect, sum_by_image

_SCORE_BINS = 5


def image_features(
    boxes_N4: Floats, scores_N: Floats, class_probs_NK: Floats, metrics_3: Floats, num_classes: int
) -> Floats:
    """Compute the features of one image from its N detections, (F,) with F = 15 + 2K.

    ``feature_names`` gives their order and meaning. An image without detections has zeros after the metrics.
    """
    num_boxes_1 = np.array([len(scores_N)], dtype=np.int64)
    overlaps = box_overlaps(boxes_N4, num_boxes_1)
    features_1D = detection_features(boxes_N4, scores_N, class_probs_NK, overlaps, num_boxes_1, num_classes)
    return np.concatenate([metrics_3, features_1D[0]]).astype(np.float64)


def detection_features(
    boxes_B4: Floats,
    scores_B: Floats,
    class_probs_BK: Floats,
    overlaps: BoxOverlaps,
    num_boxes_P: NDArray[np.int64],
    num_classes: int,
) -> Floats:
    """Compute the features of many images without the three metrics, (P, D) with D = 12 + 2K.

    Args:
        boxes_B4: the boxes of P images one after another, XYXY in px.
        scores_B: their scores, in [0, 1].
        class_probs_BK: their class probabilities, (B, K+1), background last; any shape without boxes.
        overlaps: their IoU, from ``box_overlaps``.
        num_boxes_P: boxes of each image; their sum is B.
        num_classes: K.

    Returns:
        In the order of ``feature_names`` from its fourth on; zeros for an image without boxes.
    """
    divisor_P1 = np.maximum(num_boxes_P, 1)[:, None]
    image_B = np.repeat(np.arange(len(num_boxes_P)), num_boxes_P)
    probs_BK = class_probs_BK.reshape(len(scores_B), -1 if len(scores_B) else num_classes + 1)[:, :-1]
    probs_BK = probs_BK.astype(np.float32, copy=False)  # NumPy computes with float16 far more slowly
    score_bin_B = np.minimum((scores_B.astype(np.float64) * _SCORE_BINS).astype(np.int64), _SCORE_BINS - 1)
    log_size_B, log_aspect_B = log_size_and_aspect(boxes_B4)
    shape_P4 = np.zeros((len(num_boxes_P), 4))
    for column, values_B in ((0, log_size_B), (2, log_aspect_B)):
        mean_P = sum_by_image(values_B, num_boxes_P) / divisor_P1[:, 0]
        variance_P = sum_by_image((values_B - mean_P[image_B]) ** 2, num_boxes_P) / divisor_P1[:, 0]
        shape_P4[:, column], shape_P4[:, column + 1] = mean_P, np.sqrt(variance_P)
    overlapping_P1 = sum_by_image((overlaps.num_neighbors_B > 0)[:, None], num_boxes_P) / divisor_P1
    return np.concatenate(
        [
            np.log1p(num_boxes_P)[:, None],
            _count_by_image(image_B, score_bin_B, len(num_boxes_P), _SCORE_BINS) / divisor_P1,
            shape_P4,
            _max_by_image(overlaps.max_B, num_boxes_P)[:, None],
            overlapping_P1,
            sum_by_image(probs_BK, num_boxes_P) / divisor_P1,
            _count_by_image(image_B, probs_BK.argmax(axis=1), len(num_boxes_P), num_classes) / divisor_P1,
        ],
        axis=1,
    )


def _count_by_image(image_B: NDArray[np.int64], kind_B: NDArray[np.int64], num_images: int, num_kinds: int) -> Floats:
    """Count the boxes of each kind in each image, (P, kinds)."""
    counts = np.bincount(image_B * num_kinds + kind_B, minlength=num_images * num_kinds)
    return counts.reshape(num_images, num_kinds).astype(np.float64)


def _max_by_image(values_B: Floats, num_boxes_P: NDArray[np.int64]) -> Floats:
    """Return the largest value of each image's boxes, (P,); 0 without a box."""
    largest_P = np.zeros(len(num_boxes_P))
    has_boxes_P = num_boxes_P > 0
    if has_boxes_P.any():
        first_box = (np.cumsum(num_boxes_P) - num_boxes_P)[has_boxes_P]
        largest_P[has_boxes_P] = np.maximum.reduceat(values_B, first_box)
    return largest_P


def feature_names(class_names: Sequence[str]) -> list[str]:
    """Return the names of the F features, by index: metrics, box count, scores, sizes and aspects, overlap, classes.

    Sizes are square roots of areas in px, aspects heights over widths; ``std`` is over the image's boxes.
    """
    edges = [round(edge, 1) for edge in np.linspace(0, 1, _SCORE_BINS + 1)]
    return [
        *("confidence", "entropy", "overlap", "log_boxes"),
        *(f"scores_{low}_to_{high}_frac" for low, high in pairwise(edges)),
        *("log_size_mean", "log_size_std", "log_aspect_mean", "log_aspect_std"),
        *("largest_iou", "overlapping_frac"),
        *(f"posterior:{name}" for name in class_names),
        *(f"boxes_frac:{name}" for name in class_names),
    ]
