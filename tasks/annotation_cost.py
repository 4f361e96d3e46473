"""How long a person needs for an image, learned from the answers whose time was measured.

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
from scipy.optimize import lsq_linear
from sklearn.linear_model import QuantileRegressor

from tasks.contracts import LabeledImage
from tasks.sections import BudgetParams

_LEAST_MINUTES = 1 / 60  # nobody opens an image in less than a second; at 0, empty images would be free
_LONG_TIMES = 3.0  # an answer that took up to three times what was expected is never left out
_LONG_SPREADS = 4.0  # and none within so many robust standard deviations, in logarithms: times differ by factors
_TELLING_ANSWERS = 5  # with another number of boxes than the most frequent one
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_DIGITS = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnnotationCost:
    """Minutes of a person's time."""

    minutes_per_image: float
    """Opening and looking, whatever is there."""
    minutes_per_box: float
    fitted: bool
    """False: the values of params.yaml, since the answers do not tell."""
    timed_answers: int
    """Answers whose time was measured."""
    left_out: int
    """Of those, how many took too long to be work."""
    why: str
    """Where the two values come from, in words."""


def annotation_cost(answers: Iterable[LabeledImage], budget: BudgetParams) -> AnnotationCost:
    """Fit the cost of an image to the answers, or fall back to ``budget`` where they do not tell.

    Args:
        answers: all there are, in the order they came in. Of each person's answers to an image the last counts,
            whose time includes that of the ones it replaced; skipped images say nothing about the cost of labeling.
        budget: its minutes are used as given as long as there are fewer than ``min_timed_answers`` timed answers.
    """
    boxes_N, minutes_N = _timed(answers)
    timed, least = len(minutes_N), budget.min_timed_answers
    if timed < least:
        few = f"answers with a measured time are {timed}, fewer than budget.min_timed_answers ({least})"
        return _as_given(budget, timed, few)
    alike = f"nearly all of {timed} timed answers have the same number of boxes, so the two cannot be told apart"
    if not _tells(boxes_N):
        return _as_given(budget, timed, alike)
    work_N = _is_work(boxes_N, minutes_N)
    if not _tells(boxes_N[work_N]):
        return _as_given(budget, timed, alike)
    kept = int(work_N.sum())
    terms_N2 = np.column_stack([np.ones(kept), boxes_N[work_N]])
    fit = lsq_linear(terms_N2, minutes_N[work_N], bounds=([_LEAST_MINUTES, 0.0], [np.inf, np.inf]), method="bvls")
    per_image, per_box = (round(float(value), _DIGITS) for value in fit.x)
    why = f"fitted to {kept} answers with a measured time"
    why += f"; {timed - kept} that took far longer than others of their size are left out" if kept < timed else ""
    return AnnotationCost(per_image, per_box, True, timed, timed - kept, why)


def _timed(answers: Iterable[LabeledImage]) -> tuple[Floats, Floats]:
    """Boxes and minutes of every answer that somebody worked on for a measured time."""
    newest = {(label.image_id, label.offered_in, label.annotator): label for label in answers}
    rows = [
        (len(label.boxes), label.seconds_spent / 60)
        for label in newest.values()
        if label.status != "skipped" and label.seconds_spent  # some tools write 0 where they measure nothing
    ]
    boxes_N, minutes_N = np.array(sorted(rows), dtype=np.float64).reshape(-1, 2).T
    return boxes_N, minutes_N


def _tells(boxes_N: Floats) -> bool:
    """Whether the slope hangs on more than a few answers, which may all be wrong."""
    _, counts = np.unique(boxes_N, return_counts=True)
    return int(counts.sum() - counts.max()) >= _TELLING_ANSWERS if len(counts) else False


def _is_work(boxes_N: Floats, minutes_N: Floats) -> NDArray[np.bool_]:
    """False where the clock ran on."""
    median = QuantileRegressor(quantile=0.5, alpha=0.0).fit(boxes_N[:, None], minutes_N)
    expected_N = np.maximum(median.predict(boxes_N[:, None]), _LEAST_MINUTES)
    factor_N = np.log(np.maximum(minutes_N, _LEAST_MINUTES) / expected_N)
    spread = _MAD_TO_DEVIATION * float(np.median(np.abs(factor_N)))
    return np.asarray(factor_N <= max(math.log(_LONG_TIMES), _LONG_SPREADS * spread))


def _as_given(budget: BudgetParams, timed: int, why: str) -> AnnotationCost:
    said = f"minutes_per_image and minutes_per_box of params.yaml: {why}"
    return AnnotationCost(budget.minutes_per_image, budget.minutes_per_box, False, timed, 0, said)
