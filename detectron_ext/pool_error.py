"""Estimate the mean error over a pool from images that were drawn at random (docs/method.md#pool-error).

Shape shorthand: n drawn images, over all draws.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from detectron_ext.uncertainty_metrics import Floats

MIN_DRAWN_IMAGES = 15
"""With fewer the interval covers too rarely, since most images have no error at all."""


class MeanEstimate(NamedTuple):
    """A mean over a pool, with a confidence interval."""

    mean: float
    low: float
    high: float


def estimate_mean(values_n: Floats, weights_n: Floats, *, level: float) -> MeanEstimate | None:
    """Estimate the mean of a quantity over the images that were drawn from (docs/method.md#eq-28).

    The interval is Hall's for skewed data (P. Hall, On the removal of skewness by transformation, 1992): errors are 0
    on most images and large on few, where a symmetric interval covers too rarely. Its variance is that of draws with
    replacement, which is larger than that of the draws as made.

    Args:
        values_n: the quantity on each drawn image, >= 0.
        weights_n: inverse of its probability of being drawn, > 0.
        level: nominal coverage of the interval, in (0, 1).

    Returns:
        None with fewer than ``MIN_DRAWN_IMAGES`` images.
    """
    count = len(values_n)
    if count < MIN_DRAWN_IMAGES:
        return None
    mean = float(weights_n @ values_n / weights_n.sum())
    residual_n = weights_n * (values_n - mean) / weights_n.mean()
    std = float(residual_n.std(ddof=1))
    if std == 0:
        return MeanEstimate(mean, mean, mean)
    skewness = float(np.mean((residual_n - residual_n.mean()) ** 3) / residual_n.std() ** 3)
    standard_error = std / np.sqrt(count)
    upper, lower = (_hall_quantile(q, skewness, count) for q in ((1 + level) / 2, (1 - level) / 2))
    return MeanEstimate(mean, max(mean - standard_error * upper, 0.0), mean - standard_error * lower)


def _hall_quantile(probability: float, skewness: float, count: int) -> float:
    """Return the quantile of the studentized mean of ``count`` values: Student's, moved by the cubic transformation."""
    quantile = float(stdtrit(count - 1, probability))
    shift = skewness / (6 * np.sqrt(count))
    if abs(shift) < 1e-9:
        return quantile
    return float((np.cbrt(1 + 6 * shift * (quantile - shift)) - 1) / (2 * shift))
