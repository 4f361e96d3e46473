"""What a comparison of two arms over paired seeds may claim: areas, intervals, labels needed. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Curve:
    """mAP against labels, of one arm with one seed; a point per round."""

    labels: tuple[float, ...]
    """Images labeled, rising."""
    values: tuple[float, ...]
    """mAP in percent."""


@dataclass(frozen=True)
class Interval:
    """Both ends included."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """One arm minus another, seed by seed, in percentage points of mAP."""

    differences: tuple[float, ...]
    """By seed."""
    mean: float
    interval: Interval | None
    """Paired bootstrap over seeds; None with a single seed."""
    t_interval: Interval | None
    """Student's t on the differences: wide where seeds are few, as it should be."""

    @property
    def verdict(self) -> str:
        """In words; the sign is that of the arm named first."""
        if self.interval is None:
            return "not distinguishable: one seed has no interval"
        if not self.interval.excludes_zero:
            return "not distinguishable"
        side = "above" if self.mean > 0 else "below"
        if self.t_interval is None or not self.t_interval.excludes_zero:
            return f"{side}, but the t interval includes 0"
        return side


def mean_height(curve: Curve, low: float, high: float) -> float:
    """Area under the curve between two numbers of labels, over their distance: the mean mAP in between.

    Linear between rounds. A range of no width gives the curve's height there.
    """
    if not high > low:
        return float(np.interp(low, curve.labels, curve.values))
    inner = [x for x in curve.labels if low < x < high]
    x = np.array([low, *inner, high])
    y = np.interp(x, curve.labels, curve.values)
    return float(np.trapezoid(y, x) / (high - low))


def common_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Numbers of labels that all curves cover; arms differ where the budget is not in images."""
    return max(curve.labels[0] for curve in curves), min(curve.labels[-1] for curve in curves)


def compare_area(ours: Sequence[Curve], theirs: Sequence[Curve], *, seed: int) -> Comparison:
    """Mean height of ours minus theirs, paired by position, each over the labels both of the pair cover."""
    differences = []
    for mine, other in zip(ours, theirs, strict=True):
        low, high = common_range([mine, other])
        differences.append(mean_height(mine, low, high) - mean_height(other, low, high))
    return compare(differences, seed=seed)


def compare_final(ours: Sequence[Curve], theirs: Sequence[Curve], *, seed: int) -> Comparison:
    """Last mAP of ours minus theirs, at the largest number of labels both of the pair reached."""
    differences = []
    for mine, other in zip(ours, theirs, strict=True):
        _, at = common_range([mine, other])
        differences.append(float(np.interp(at, mine.labels, mine.values) - np.interp(at, other.labels, other.values)))
    return compare(differences, seed=seed)


def compare(differences: Sequence[float], *, seed: int) -> Comparison:
    """Mean, paired bootstrap interval and t interval of differences by seed; at least one."""
    return Comparison(
        tuple(differences),
        float(np.mean(differences)),
        paired_bootstrap(differences, seed=seed),
        t_interval(differences),
    )


def paired_bootstrap(
    differences: Sequence[float], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """Percentile interval of the mean: seeds are drawn with replacement, a pair stays together.

    Of n seeds all of one sign the interval excludes 0, which chance alone brings about once in 2^(n-1).

    Returns:
        None with fewer than two differences.
    """
    if len(differences) < 2:
        return None
    values = np.asarray(differences, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[drawn].mean(axis=1), [tail, 1 - tail])
    return Interval(float(low), float(high))


def t_interval(differences: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's interval of the mean, mean +- t_(n-1) s / sqrt(n); None with fewer than two differences."""
    count = len(differences)
    if count < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, count - 1) * np.std(differences, ddof=1) / np.sqrt(count)
    return Interval(float(np.mean(differences) - half), float(np.mean(differences) + half))


def labels_to_reach(curve: Curve, target: float) -> float | None:
    """Fewest labels at which the curve, linear between rounds, is at ``target``; None if it never is.

    A curve that starts at or above the target gives its first number of labels: at most so many are needed.
    """
    if curve.values[0] >= target:
        return curve.labels[0]
    steps = list(zip(curve.labels, curve.values, strict=True))
    for (x0, y0), (x1, y1) in pairwise(steps):
        if y1 >= target:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return None
