"""Fit the time that an annotator needs for an image to the answers with a measured time.

``minutes = minutes_per_image + minutes_per_box * boxes``, fitted by least squares with coefficients that are not
negative. The mean is wanted, not the median, since a budget is a sum over images. So clocks that ran on through a
lunch break are left out first: answers that took far longer than a median regression expects of their number of
boxes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.data.schemas import MAX_SECONDS_SPENT, LabeledImage
from tasks.params.stages import BudgetParams

_MIN_MINUTES = 1 / 60  # nobody opens an image in less than a second; at 0, empty images would be free
_MAX_DURATION_RATIO = 3.0  # an answer that took up to three times what was expected is never left out
_MAX_ROBUST_STDS = 4.0  # and none within so many robust standard deviations, in logarithms: times differ by factors
_MIN_INFORMATIVE = 5  # with another number of boxes than the most frequent one
_MAD_TO_STD = 1.4826  # of a normal distribution
_DIGITS = 4
_MAX_ANNOTATIONS = 5000  # the newest ones: the fit of the median costs more than linearly

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnnotationCost:
    """Expected minutes of an annotator (docs/method.md#eq-23)."""

    minutes_per_image: float
    """Minutes to open and check an image, without any box."""
    minutes_per_box: float
    is_fitted: bool
    """False: the values of params.yaml, since the answers do not determine them."""
    num_timed: int
    """Answers whose time was measured."""
    num_outliers: int
    """Of those, how many took too long to be work."""
    reason: str
    """Where the two values come from, in words."""


def fit_annotation_cost(annotations: Iterable[LabeledImage], budget: BudgetParams) -> AnnotationCost:
    """Fit the cost of an image to the answers, or fall back to ``budget`` where they do not determine it.

    Args:
        annotations: all there are, in the order they came in. Of each person's answers to an image the last counts,
            whose time includes that of the ones it replaced; skipped images and checks of labels say nothing about the
            cost of labeling.
        budget: its minutes are used as given as long as there are fewer than ``min_timed_annotations`` timed answers.
    """
    boxes_N, minutes_N = _timed_annotations(annotations)
    num_timed, min_timed = len(minutes_N), budget.min_timed_annotations
    if num_timed < min_timed:
        too_few = f"answers with a measured time are {num_timed}, fewer than budget.min_timed_annotations ({min_timed})"
        return _from_params(budget, num_timed, too_few)
    too_similar = (
        f"nearly all of {num_timed} timed answers have the same number of boxes, so the two cannot be told apart"
    )
    if not _is_informative(boxes_N):
        return _from_params(budget, num_timed, too_similar)
    plausible_N = _is_plausible_duration(boxes_N, minutes_N)
    if not _is_informative(boxes_N[plausible_N]):
        return _from_params(budget, num_timed, too_similar)
    from scipy.optimize import lsq_linear  # as below

    num_plausible = int(plausible_N.sum())
    terms_N2 = np.column_stack([np.ones(num_plausible), boxes_N[plausible_N]])
    fit = lsq_linear(terms_N2, minutes_N[plausible_N], bounds=([_MIN_MINUTES, 0.0], [np.inf, np.inf]), method="bvls")
    per_image, per_box = (round(float(value), _DIGITS) for value in fit.x)
    reason = f"fitted to {num_plausible} answers with a measured time"
    reason += (
        f"; {num_timed - num_plausible} that took far longer than others of their size are left out"
        if num_plausible < num_timed
        else ""
    )
    return AnnotationCost(per_image, per_box, True, num_timed, num_timed - num_plausible, reason)


def _timed_annotations(annotations: Iterable[LabeledImage]) -> tuple[Floats, Floats]:
    """Return boxes and minutes of every answer with a measured time."""
    latest = {(label.image_id, label.offered_batch, label.annotator): label for label in annotations}
    rows = [
        (len(label.boxes), label.seconds_spent / 60)
        for label in latest.values()
        if label.status != "skipped"
        and label.checks_batch is None
        and label.seconds_spent  # some tools write 0 where they measure nothing
        and label.seconds_spent <= MAX_SECONDS_SPENT  # an earlier version stored any number
    ][-_MAX_ANNOTATIONS:]
    boxes_N, minutes_N = np.array(sorted(rows), dtype=np.float64).reshape(-1, 2).T
    return boxes_N, minutes_N


def _is_informative(boxes_N: Floats) -> bool:
    """Return whether the slope rests on more than a few answers, which may all be wrong."""
    _, counts = np.unique(boxes_N, return_counts=True)
    return int(counts.sum() - counts.max()) >= _MIN_INFORMATIVE if len(counts) else False


def _is_plausible_duration(boxes_N: Floats, minutes_N: Floats) -> NDArray[np.bool_]:
    """Return False where the clock was left running."""
    from sklearn.linear_model import QuantileRegressor  # seconds to import, so only where something is fitted

    median = QuantileRegressor(quantile=0.5, alpha=0.0).fit(boxes_N[:, None], minutes_N)
    expected_N = np.maximum(median.predict(boxes_N[:, None]), _MIN_MINUTES)
    log_ratio_N = np.log(np.maximum(minutes_N, _MIN_MINUTES) / expected_N)
    robust_std = _MAD_TO_STD * float(np.median(np.abs(log_ratio_N)))
    return np.asarray(log_ratio_N <= max(math.log(_MAX_DURATION_RATIO), _MAX_ROBUST_STDS * robust_std))


def _from_params(budget: BudgetParams, num_timed: int, reason: str) -> AnnotationCost:
    description = f"minutes_per_image and minutes_per_box of params.yaml: {reason}"
    return AnnotationCost(budget.minutes_per_image, budget.minutes_per_box, False, num_timed, 0, description)
