"""Want images with objects of rare classes, or of unusual size, shape or crowding.

Shape letters: B boxes of a batch of images, K foreground classes, G labeled boxes.
"""

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import box_overlaps
from tasks.data.detections import DetectionBatch
from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView

_PRIOR_COUNT = 5.0
_EXPONENT = 0.5
_MAX_DEVIATIONS = 3.0
_MIN_BOXES_FOR_SHAPE = 5


class Rarity:
    """Expected objects, each with the weight of its class and of its look: ``sum_i s_i r_c(i) (1 + u_i)``.

    ``r_c = ((n_max + a) / (n_c + a))^b`` with n_c labeled boxes of class c, a = 5 and b = 0.5. ``u_i`` in [0, 3] adds
    how far log area and log aspect ratio lie from the labeled boxes of the class (in standard deviations, at most 3,
    divided by 3), and the largest overlap with another box of the image (occlusion).
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the sum for each candidate, (P,)."""
        boxes_G4, class_ids_G = pool.labeled_boxes
        shapes_G2 = _log_shape(boxes_G4)
        return pool.sum_over_boxes(lambda batch: _terms(batch, shapes_G2, class_ids_G))


def class_rarity(class_ids_G: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return r_c of every class, (K,): 1 for the most frequent one, larger for rarer ones."""
    count_K = np.bincount(class_ids_G, minlength=num_classes).astype(np.float64)
    return np.asarray(((count_K.max(initial=0) + _PRIOR_COUNT) / (count_K + _PRIOR_COUNT)) ** _EXPONENT)


def _terms(
    batch: DetectionBatch, shapes_G2: NDArray[np.float64], class_ids_G: NDArray[np.int64]
) -> NDArray[np.float64]:
    num_classes = max(batch.class_probs.shape[1] - 1, int(class_ids_G.max(initial=-1)) + 1)
    unusual_B = np.zeros(len(batch.scores))
    found_B2 = _log_shape(batch.boxes_xyxy.astype(np.float64))
    for category in np.unique(batch.class_ids):
        of_class_G2 = shapes_G2[class_ids_G == category]
        if len(of_class_G2) < _MIN_BOXES_FOR_SHAPE:
            continue
        found = batch.class_ids == category
        deviations = np.abs(found_B2[found] - of_class_G2.mean(axis=0)) / np.maximum(of_class_G2.std(axis=0), 0.1)
        unusual_B[found] = np.minimum(deviations, _MAX_DEVIATIONS).sum(axis=1) / _MAX_DEVIATIONS
    unusual_B += box_overlaps(batch.boxes_xyxy, batch.num_boxes).max_B
    return np.asarray(batch.scores * class_rarity(class_ids_G, num_classes)[batch.class_ids] * (1 + unusual_B))


def _log_shape(boxes_B4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log area and log aspect ratio, (B, 2)."""
    sides_B2 = np.maximum(boxes_B4[:, 2:] - boxes_B4[:, :2], 1e-3)
    return np.asarray(np.log(np.stack([sides_B2.prod(axis=1), sides_B2[:, 0] / sides_B2[:, 1]], axis=1)))
