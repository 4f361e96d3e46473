"""What a comparison of two arms over paired seeds may claim: areas, intervals, costs needed. Pure functions.

Cost is whatever stands on the x axis: minutes of annotation, boxes or images (docs/method.md#claims).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
CONFIDENCE_LEVEL = 0.95
RESAMPLES = 10_000
SIGNIFICANCE_LEVEL = 0.05
MIN_SEEDS = 3
"""With fewer paired seeds nothing is claimed."""


@dataclass(frozen=True)
class Curve:
    """mAP against cost, of one arm with one seed; a point per round."""

    cost: tuple[float, ...]
    """Minutes, boxes or images so far; never falling."""
    values: tuple[float, ...]
    """mAP in percent."""
    resampled_values: tuple[tuple[float, ...], ...] = ()
    """The same points on draws of the validation images, a draw each; empty where there are none."""

    def resample(self) -> "list[Curve]":
        """The curve as it would be on each draw of the images."""
        return [Curve(self.cost, values) for values in self.resampled_values]


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
    """Paired bootstrap over seeds and, where there are draws of them, validation images; None with a single seed."""
    t_interval: Interval | None
    """Student's t on the differences: wide where seeds are few, as it should be."""
    p_value: float | None
    """Of the two-sided paired t test; None with a single seed."""

    @property
    def verdict(self) -> str:
        """In words, for a comparison alone; the sign is that of the arm named first."""
        if self.interval is None or self.t_interval is None:
            return "no claim: one seed has no interval"
        if len(self.differences) < MIN_SEEDS:
            return f"no claim from {len(self.differences)} seeds"
        side = "above" if self.mean > 0 else "below"
        if self.interval.excludes_zero and self.t_interval.excludes_zero:
            return side
        if self.interval.excludes_zero:
            return f"not distinguishable: {side} by the bootstrap over seeds, but the t interval includes 0"
        return "not distinguishable"

    def corrected_verdict(self, adjusted_p: float | None, num_comparisons: int) -> str:
        """In words, for one of several comparisons.

        Args:
            adjusted_p: the p value after Holm's correction.
            num_comparisons: how many were made.
        """
        if self.verdict not in ("above", "below") or adjusted_p is None or adjusted_p < SIGNIFICANCE_LEVEL:
            return self.verdict
        return f"not distinguishable: {self.verdict} alone, but not as one of {num_comparisons} comparisons"


def mean_value(curve: Curve, low: float, high: float) -> float:
    """Area under the curve between two costs, over their distance: the mean mAP in between.

    Linear between rounds. A range of no width gives the curve's height there.
    """
    if not high > low:
        return float(np.interp(low, curve.cost, curve.values))
    inner = [x for x in curve.cost if low < x < high]
    x = np.array([low, *inner, high])
    y = np.interp(x, curve.cost, curve.values)
    return float(np.trapezoid(y, x) / (high - low))


def common_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Costs that all curves cover; arms differ in what the same number of rounds has cost."""
    return max(curve.cost[0] for curve in curves), min(curve.cost[-1] for curve in curves)


def compare_area(ours: Sequence[Curve], theirs: Sequence[Curve], *, seed: int) -> Comparison:
    """Mean height of ours minus theirs, paired by position, each over the costs that both of the pair cover."""
    return _compare_curves(ours, theirs, _area_difference, seed)


def compare_final(ours: Sequence[Curve], theirs: Sequence[Curve], *, seed: int) -> Comparison:
    """Last mAP of ours minus theirs, at the largest cost that both of the pair reached; linear between rounds."""
    return _compare_curves(ours, theirs, _final_difference, seed)


def compare(differences: Sequence[float], *, seed: int, resampled: Sequence[Sequence[float]] = ()) -> Comparison:
    """Mean, paired bootstrap interval and t interval of differences by seed; at least one."""
    return Comparison(
        tuple(differences),
        float(np.mean(differences)),
        paired_bootstrap(differences, seed=seed, resampled=resampled),
        t_interval(differences),
        p_value(differences),
    )


def paired_bootstrap(
    differences: Sequence[float],
    *,
    seed: int,
    resampled: Sequence[Sequence[float]] = (),
    resamples: int = RESAMPLES,
    level: float = CONFIDENCE_LEVEL,
) -> Interval | None:
    """Percentile interval of the mean over resamples of the seeds and of the validation images.

    Each resample draws seeds with replacement and one resample of the validation images, which all of its seeds
    share: they are measured on one validation set, whose noise does not average out over seeds.

    Of n seeds all of one sign, far beyond what the images could turn, the interval excludes 0; chance alone brings
    that about once in 2^(n-1).

    Args:
        differences: by seed.
        seed: of the resampling.
        resampled: by seed, the difference on each resample of the validation images, the same resamples in the same
            order for all seeds; where it is empty, or empty for any seed, the images are taken as they are.
        resamples: how many.
        level: of the interval.

    Returns:
        None with fewer than two differences.
    """
    if len(differences) < 2:
        return None
    values = resampled if resampled and all(resampled) else [[value] for value in differences]
    values_SD = np.asarray(values, dtype=np.float64)  # seeds x draws
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, len(differences), size=(resamples, len(differences)))
    draws = rng.integers(0, values_SD.shape[1], size=(resamples, 1))  # all seeds share one validation set
    means = values_SD[seeds, draws].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def t_interval(differences: Sequence[float], level: float = CONFIDENCE_LEVEL) -> Interval | None:
    """Student's interval of the mean, mean +- t_(n-1) s / sqrt(n); None with fewer than two differences."""
    count = len(differences)
    if count < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, count - 1) * np.std(differences, ddof=1) / np.sqrt(count)
    return Interval(float(np.mean(differences) - half), float(np.mean(differences) + half))


def p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired t test; None with fewer than two differences.

    Differences that are all the same have p 0, or 1 where they are 0.
    """
    if len(differences) < 2:
        return None
    if np.std(differences, ddof=1) == 0:
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number by Holm's step-down method; None stays None and does not count.

    The k-th smallest of m is multiplied by m - k + 1, never below the adjusted one before it, at most 1.
    """
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = largest
    return adjusted


def cost_to_reach(curve: Curve, target: float) -> float | None:
    """Return the smallest cost at which the curve, linear between rounds, is at ``target``; None if it never is.

    A curve that starts at or above the target gives its first cost: at most so much is needed.
    """
    if curve.values[0] >= target:
        return curve.cost[0]
    steps = list(zip(curve.cost, curve.values, strict=True))
    for (x0, y0), (x1, y1) in pairwise(steps):
        if y1 >= target:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return None


def _compare_curves(
    ours: Sequence[Curve], theirs: Sequence[Curve], difference: Callable[[Curve, Curve], float], seed: int
) -> Comparison:
    pairs = list(zip(ours, theirs, strict=True))
    resampled = [
        [difference(*curves) for curves in zip(mine.resample(), other.resample(), strict=True)]
        if mine.resampled_values and other.resampled_values
        else []
        for mine, other in pairs
    ]
    return compare([difference(mine, other) for mine, other in pairs], seed=seed, resampled=resampled)


def _area_difference(mine: Curve, other: Curve) -> float:
    low, high = common_range([mine, other])
    return mean_value(mine, low, high) - mean_value(other, low, high)


def _final_difference(mine: Curve, other: Curve) -> float:
    _, at = common_range([mine, other])
    return float(np.interp(at, mine.cost, mine.values) - np.interp(at, other.cost, other.values))
