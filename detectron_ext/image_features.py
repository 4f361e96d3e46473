"""Input features of the DWA network for one image (docs/method.md#dwa)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import Floats, pairwise_iou

_SCORE_BINS = 5
_OVERLAPPING_IOU = 0.3


def image_features(
    boxes_N4: NDArray[np.float32],
    scores_N: NDArray[np.float32],
    class_probs_NK: NDArray[np.float32],
    metrics_3: Floats,
    num_classes: int,
) -> Floats:
    """Compute the features of one image from its N detections, (F,) with F = 15 + 2K.

    ``feature_names`` gives their order and meaning. An image without detections has zeros after the metrics.
    """
    count = len(scores_N)
    if count == 0:
        return np.concatenate([metrics_3, np.zeros(_SCORE_BINS + 7 + 2 * num_classes)])
    histogram = np.histogram(scores_N, bins=_SCORE_BINS, range=(0, 1))[0] / count
    sides = np.clip(boxes_N4[:, 2:] - boxes_N4[:, :2], 1, None).astype(np.float64)
    size, aspect = np.log(sides.prod(axis=1)) / 2, np.log(sides[:, 1] / sides[:, 0])
    max_iou_N = (pairwise_iou(boxes_N4, boxes_N4) - np.eye(count)).max(axis=1).clip(0, 1)
    predicted_frac_K = np.bincount(class_probs_NK[:, :-1].argmax(axis=1), minlength=num_classes) / count
    shape = [
        size.mean(),
        size.std(),
        aspect.mean(),
        aspect.std(),
        max_iou_N.max(),
        (max_iou_N > _OVERLAPPING_IOU).mean(),
    ]
    return np.concatenate(
        [metrics_3, [np.log1p(count)], histogram, shape, class_probs_NK[:, :-1].mean(axis=0), predicted_frac_K]
    ).astype(np.float64)


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
