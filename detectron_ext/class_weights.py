"""Class weights of the training loss from realized losses (docs/method.md#class-weights).

Shape shorthand: K foreground classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from detectron_ext.detection_loss import Floats, Ints, RealizedLoss


class ClassWeights(NamedTuple):
    """Weights of the classes in the training loss; both have mean 1."""

    positive_K: Floats  # v_c, of the class's own objects
    claimed_background_K: Floats  # b_c, of background that is claimed for the class


def unit_class_weights(num_classes: int) -> ClassWeights:
    """Return weights that are all 1."""
    return ClassWeights(np.ones(num_classes), np.ones(num_classes))


def class_difficulty(losses: Sequence[RealizedLoss], num_classes: int) -> tuple[Floats, Floats]:
    """Compute the mean loss per labeled box and per claim, by class (docs/method.md#eq-9).

    Returns:
        D_c, (K,), high for a class that is missed or confused, and A_c, (K,), high for a class that is claimed where
        nothing is. NaN for a class without a labeled box, and without a claim.
    """
    sums = _sums(losses, num_classes)
    return _mean(sums.positive_K, sums.num_boxes_K), _mean(sums.claimed_background_K, sums.num_claims_K)


def class_weights(
    losses: Sequence[RealizedLoss], num_classes: int, *, prior_count: float, weight_max: float
) -> ClassWeights:
    """Compute v_c and b_c: difficulties relative to their mean, shrunk towards 1, bounded (docs/method.md#eq-10).

    Args:
        losses: of all samples.
        num_classes: K.
        prior_count: k > 0, number of terms that counts as much for 1 as the class's own terms for its difficulty.
        weight_max: upper bound of a weight; its inverse is the lower one.
    """
    sums = _sums(losses, num_classes)
    positive_K, background_K = class_difficulty(losses, num_classes)
    return ClassWeights(
        _shrink_and_bound(positive_K, sums.num_boxes_K, prior_count, weight_max),
        _shrink_and_bound(background_K, sums.num_claims_K, prior_count, weight_max),
    )


def _sums(losses: Sequence[RealizedLoss], num_classes: int) -> RealizedLoss:
    if not losses:
        return RealizedLoss(
            np.zeros(num_classes), np.zeros(num_classes, int), np.zeros(num_classes), np.zeros(num_classes, int)
        )
    return RealizedLoss(*(np.sum(parts, axis=0) for parts in zip(*losses, strict=True)))


def _mean(total_K: Floats, num_terms_K: Ints) -> Floats:
    return np.divide(total_K, num_terms_K, out=np.full(len(total_K), np.nan), where=num_terms_K > 0)


def _shrink_and_bound(difficulty_K: Floats, num_terms_K: Ints, prior_count: float, weight_max: float) -> Floats:
    """Return weights of mean 1 in [1 / weight_max, weight_max]; exactly 1 for a class without terms."""
    weights_K = np.ones(len(difficulty_K))
    is_seen_K = num_terms_K > 0
    if not is_seen_K.any() or difficulty_K[is_seen_K].sum() == 0:
        return weights_K
    relative = difficulty_K[is_seen_K] / difficulty_K[is_seen_K].mean()
    num_terms = num_terms_K[is_seen_K]
    weights_K[is_seen_K] = bound((num_terms * relative + prior_count) / (num_terms + prior_count), weight_max)
    return weights_K


def bound(weight_K: Floats, weight_max: float) -> Floats:
    """Scale weights so that their mean is 1 once they are clipped to [1 / weight_max, weight_max].

    Args:
        weight_K: above 0.
        weight_max: at least 1.
    """

    def clip(log_scale: float) -> Floats:
        return np.clip(weight_K * np.exp(log_scale), 1 / weight_max, weight_max)

    if weight_max == 1 or (weight_K == weight_K[0]).all():
        return np.ones(len(weight_K))
    low = np.log(1 / weight_max / weight_K.max())  # all are at the lower bound
    high = np.log(weight_max / weight_K.min())  # all are at the upper bound
    return clip(brentq(lambda log_scale: clip(log_scale).mean() - 1, low, high, xtol=1e-12))
