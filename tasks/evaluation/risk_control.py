"""Bound the share of wrong boxes, or of wrong images, from images that were drawn at random and labeled.

Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052): thresholds are tested one after the other, each with a
p-value that holds for any distribution; the last one before the first failure is used (docs/method.md#autolabel).

The unit is the image. Boxes of one image stand or fall together, so they are never counted as independent: an image
with ``a`` accepted boxes, ``w`` of them wrong, gives one term ``w - risk * a``, whose mean over images is at most 0
just where the share of wrong boxes is at most ``risk``. Where no image has more than one accepted box, images are coin
flips, and the binomial test is exact; otherwise the test is by betting (Waudby-Smith and Ramdas 2020,
arXiv:2010.09686), which needs no other assumption than that ``a`` has an upper bound.

Shape shorthand: n images drawn at random, each with at least one accepted box; G bets.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import beta, binomtest

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_NUM_BETS = 64
# Shares of the largest bet, distributed as the square of a sine: dense at both ends, where a class without any error,
# or with nearly the risk that is tested, has its best bet. Which one is best is not known, so half of the capital is
# divided among all of them, and half goes to the one that a plan favors.
_BETS_G = np.sin(np.pi * (np.arange(_NUM_BETS) + 0.5) / (2 * _NUM_BETS)) ** 2
_MAX_IMAGES = 1_000_000
_BISECTIONS = 50


class Interval(NamedTuple):
    """A share with an exact confidence interval."""

    num_right: int
    num_all: int
    low: float
    high: float


def risk_p_value(
    num_wrong_n: Ints, num_accepted_n: Ints, max_accepted: int, risk: float, favored_bet: int | None = None
) -> float:
    """Return the p-value of the hypothesis that more than ``risk`` of the accepted boxes are wrong.

    Args:
        num_wrong_n: wrong ones among the accepted boxes of each image, (n,).
        num_accepted_n: accepted boxes of each image, (n,), from 1 to ``max_accepted``.
        max_accepted: bound on the accepted boxes of an image, fixed without looking at these images.
        risk: in (0, 1).
        favored_bet: of ``RiskPlan``, chosen without looking at these images; None: all bets are equal.
    """
    if not len(num_accepted_n):
        return 1.0
    if max_accepted == 1:
        return float(bdtr(int(num_wrong_n.sum()), len(num_wrong_n), risk))
    growth_nG = _log_growth(risk * num_accepted_n - num_wrong_n, max_accepted, risk)
    return _betting_p_value(growth_nG.sum(axis=0), favored_bet)


def _log_growth(gain_n: Floats, max_accepted: int, risk: float) -> Floats:
    """Return the logarithm of the factor by which each bet grows the capital with each image, (n, G).

    ``gain`` is ``risk * a - w``, whose mean is below 0 under the hypothesis. At worst all ``max_accepted`` boxes are
    wrong and it is ``-(1 - risk) * max_accepted``: the largest bet would then lose all it has.
    """
    return np.asarray(np.log1p(np.outer(gain_n, _BETS_G / ((1 - risk) * max_accepted))))


def _betting_p_value(log_capital_G: Floats, favored_bet: int | None) -> float:
    """Return the p-value of the capital that the bets have together, begun with 1 (Markov's inequality)."""
    largest = float(log_capital_G.max())
    relative_G = np.exp(log_capital_G - largest)
    mean = float(relative_G.mean())
    if favored_bet is not None:
        mean = (mean + float(relative_G[favored_bet])) / 2
    return math.exp(min(-largest - math.log(mean), 0.0))


def risk_upper_bound(
    num_wrong_n: Ints, num_accepted_n: Ints, max_accepted: int, level: float, favored_bet: int | None = None
) -> float:
    """Return the upper confidence bound on the share of wrong boxes: the lowest risk with a p-value up to ``level``.

    Args:
        num_wrong_n: as in ``risk_p_value``, as are the next two.
        num_accepted_n: (n,).
        max_accepted: bound on it.
        level: probability that the bound is too low, in (0, 1).
        favored_bet: as in ``risk_p_value``.
    """
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if risk_p_value(num_wrong_n, num_accepted_n, max_accepted, middle, favored_bet) <= level:
            high = middle
        else:
            low = middle
    return high


def fixed_sequence(p_values: Iterable[float], level: float) -> int:
    """Return how many hypotheses are rejected before the first one that is not.

    In an order that does not depend on the images behind the p-values, none of the rejected ones is true with
    probability ``1 - level``, however many there are. Nothing is evaluated behind the first failure.
    """
    num_rejected = 0
    for p_value in p_values:
        if p_value > level:
            break
        num_rejected += 1
    return num_rejected


class RiskPlan:
    """What a number of labeled images could show of a threshold, by the accepted boxes in the unlabeled pool.

    The order of the tests has to be fixed without the labeled images, so where it begins is decided here.
    """

    def __init__(self, num_accepted_n: Ints, max_accepted: int, risk: float) -> None:
        """Summarize the pool.

        Args:
            num_accepted_n: accepted boxes of each image of the pool that has any, (n,), from 1 to ``max_accepted``.
            max_accepted: bound on it.
            risk: that is to be tested.
        """
        self._max_accepted, self._risk = max_accepted, risk
        counts_A = np.bincount(num_accepted_n, minlength=max_accepted + 1)[1:]
        share_A = counts_A / max(counts_A.sum(), 1)
        accepted_A = np.arange(1, max_accepted + 1)
        self._growth_G = share_A @ _log_growth(risk * accepted_A, max_accepted, risk)
        # Wrong boxes come together: so many images as hold them lose all of theirs.
        mean = float(share_A @ accepted_A)
        wrong, right = (_log_growth(np.array([risk * mean - w]), max_accepted, risk)[0] for w in (mean, 0.0))
        self._loss_G = (wrong - right) / max(mean, 1.0)

    def p_value(self, num_images: float, *, num_wrong: float) -> float:
        """Return the p-value of so many images with accepted boxes, where ``num_wrong`` boxes of them are wrong."""
        if num_images < max(num_wrong, 1):
            return 1.0
        if self._max_accepted == 1:
            return float(bdtr(math.ceil(num_wrong), int(num_images), self._risk))
        planned_G = num_images * self._growth_G + num_wrong * self._loss_G
        return _betting_p_value(planned_G, int(planned_G.argmax()))

    def favored_bet(self, num_images: float, *, num_wrong: float) -> int:
        """Return the bet that has most after so many images and wrong boxes; it has no effect on the binomial test."""
        return int((num_images * self._growth_G + num_wrong * self._loss_G).argmax())

    def images_needed(self, level: float, *, num_wrong: int) -> int | None:
        """Return the fewest images with accepted boxes that show the risk at ``level``; None beyond a million."""
        low, high = 0, 1
        while self.p_value(high, num_wrong=num_wrong) > level:
            low, high = high, 2 * high
            if high > _MAX_IMAGES:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.p_value(middle, num_wrong=num_wrong) <= level else (middle, high)
        return high


def binomial_p_value(num_wrong: int, num_images: int, risk: float) -> float:
    """Return the exact p-value of the hypothesis that more than ``risk`` of the images are wrong."""
    return float(bdtr(num_wrong, num_images, risk)) if num_images else 1.0


def binomial_upper_bound(num_wrong: int, num_images: int, level: float) -> float:
    """Return the one-sided upper confidence bound on a share (Clopper and Pearson 1934); 1 where all are wrong."""
    return float(beta.ppf(1 - level, num_wrong + 1, num_images - num_wrong)) if num_wrong < num_images else 1.0


def exact_interval(num_right: int, num_all: int, confidence_level: float) -> Interval:
    """Return the two-sided exact interval of a share (Clopper and Pearson 1934); from 0 to 1 where nothing was drawn.

    It also holds, and is a little too wide, for draws without replacement.
    """
    if not num_all:
        return Interval(0, 0, 0.0, 1.0)
    found = binomtest(num_right, num_all).proportion_ci(confidence_level, method="exact")
    return Interval(num_right, num_all, float(found.low), float(found.high))
