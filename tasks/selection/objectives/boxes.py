"""Want images by what each of their detections says: doubt about its class, or about its place.

Shape letters: B boxes of a batch of images, K foreground classes.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.data.detections import DetectionBatch
from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView


class LeastConfident:
    """Doubt that a detection is an object at all, summed over the boxes: ``sum_i (1 - s_i)``."""

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the sum for each candidate, (P,)."""
        return pool.sum_over_boxes(lambda batch: 1 - batch.scores.astype(np.float64))


class Margin:
    """Doubt between the two likeliest classes, summed over the boxes: ``sum_i (1 - (p_1 - p_2))^2``.

    1-vs-2 with the sum as aggregation (Brust et al. 2019); p_1 and p_2 are the two largest foreground posteriors.
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the sum for each candidate, (P,)."""
        return pool.sum_over_boxes(_margin_term)


class Localization:
    """Doubt about the places of confident boxes: ``sum_i s_i (1 - IoU(b_i, b'_i))``.

    b' is what a second regression pass makes of b. A box that the detector itself would move again is badly placed.
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the sum for each candidate, (P,)."""
        return pool.sum_over_boxes(lambda batch: batch.scores.astype(np.float64) * (1 - batch.stability))


def _margin_term(batch: DetectionBatch) -> NDArray[np.float64]:
    foreground_BK = batch.class_probs[:, :-1].astype(np.float64)
    if foreground_BK.shape[1] < 2:
        return (1 - batch.scores.astype(np.float64)) ** 2
    top_two_B2 = np.partition(foreground_BK, -2, axis=1)[:, -2:]
    return np.asarray((1 - (top_two_B2[:, 1] - top_two_B2[:, 0])) ** 2)
