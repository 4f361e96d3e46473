"""How often the teacher's detections are right, by class and score, and what follows for pseudo-labels.

Shape shorthand: N detections of one image, G labeled boxes, T detections of one class over all images.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import betaincinv

from detectron_ext.detection_loss import Floats, Ints, match_detections

Bools = NDArray[np.bool_]
CONFIDENCE = 0.9
"""Of the one-sided lower bound on a precision."""


class ClassPrecision(NamedTuple):
    """What is known of one class's pseudo-labels (docs/method.md#precision)."""

    threshold: float
    """Score from which a detection becomes a pseudo-label."""
    is_measured: bool
    """Whether the threshold comes from measured precision; else it is the fixed one."""
    num_terms: int
    """Detections with a known outcome at or above the threshold."""
    precision: float | None
    """Share of them that is right; None without any."""
    lower_bound: float | None
    """Of the precision; None with too few of them."""
    takes_part: bool
    """Whether detections of the class become pseudo-labels."""


def is_right(boxes_N4: Floats, scores_N: Floats, class_ids_N: Ints, gt_boxes_G4: Floats, gt_class_ids_G: Ints) -> Bools:
    """Return whether each detection is an object of its class: IoU >= 0.5, each object once, best score first, (N,)."""
    right_N = np.zeros(len(scores_N), dtype=bool)
    for class_id in np.unique(class_ids_N):
        own = np.flatnonzero(class_ids_N == class_id)
        right_N[own] = match_detections(boxes_N4[own], scores_N[own], gt_boxes_G4[gt_class_ids_G == class_id]) >= 0
    return right_N


def calibrated_precision(scores_T: Floats, right_T: Bools) -> tuple[Floats, Floats]:
    """Estimate the probability to be right as a function of the score that never falls (isotonic regression).

    Returns:
        The distinct scores, rising, (S,), and the estimate at each, (S,).
    """
    distinct_S, index_T = np.unique(scores_T.astype(np.float64), return_inverse=True)
    counts_S = np.bincount(index_T)
    share_S = np.bincount(index_T, weights=right_T.astype(np.float64)) / counts_S
    return distinct_S, isotonic_regression(share_S, weights=counts_S.astype(np.float64)).x


def precision_threshold(scores_T: Floats, right_T: Bools, target: float) -> float | None:
    """Return the lowest score at which the calibrated precision reaches ``target``; None where it never does."""
    distinct_S, precision_S = calibrated_precision(scores_T, right_T)
    reached = np.flatnonzero(precision_S >= target - 1e-9)
    return float(distinct_S[reached[0]]) if len(reached) else None


def lower_bound(num_right: int, num_terms: int) -> float:
    """Return the one-sided lower confidence bound on a share (Clopper and Pearson 1934); 0 for none right."""
    return float(betaincinv(num_right, num_terms - num_right + 1, 1 - CONFIDENCE)) if num_right else 0.0


def assess_class(
    scores_T: Floats,
    right_T: Bools,
    *,
    fixed_threshold: float,
    target_precision: float | None,
    min_precision: float,
    min_terms: int,
) -> ClassPrecision:
    """Choose the threshold of a class, and whether it takes part (docs/method.md#precision).

    Args:
        scores_T: of detections whose outcome is known.
        right_T: whether each is right.
        fixed_threshold: used where the precision is not known.
        target_precision: the threshold is the lowest score that reaches it; None: always the fixed one.
        min_precision: a class takes no part while the lower bound on its precision is less.
        min_terms: detections at or above a threshold that make its precision known.
    """
    threshold, is_measured = fixed_threshold, False
    never_reached = False
    if target_precision is not None and len(scores_T) >= min_terms:
        measured = precision_threshold(scores_T, right_T, target_precision)
        never_reached = measured is None
        if measured is not None and (scores_T >= measured).sum() >= min_terms:
            threshold, is_measured = measured, True
    used_T = scores_T >= threshold
    num_terms, num_right = int(used_T.sum()), int(right_T[used_T].sum())
    bound = lower_bound(num_right, num_terms) if num_terms >= min_terms else None
    return ClassPrecision(
        threshold=threshold,
        is_measured=is_measured,
        num_terms=num_terms,
        precision=num_right / num_terms if num_terms else None,
        lower_bound=bound,
        takes_part=not never_reached and (bound is None or bound >= min_precision),
    )
