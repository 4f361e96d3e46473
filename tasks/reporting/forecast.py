"""Forecast the minutes of labeling to a wanted mAP, from the campaign's learning curve (docs/method.md#forecast).

Shape shorthand: R points of the curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tasks.reporting.stopping import Floats, learning_curve, noise_std
from tasks.runtime.errors import UserError

MIN_POINTS = 4
"""Rounds before there is a forecast: two fix the curve, the others tell its noise."""
MAX_FACTOR = 1000.0
"""A wanted mAP that takes more than so many times the minutes so far counts as out of reach."""


@dataclass(frozen=True)
class Forecast:
    """Further minutes of labeling until the teacher's mAP is as wanted, by the fitted curve."""

    minutes: float | None
    """None: out of reach by the curve."""
    low: float | None
    """With ``confidence_level``, at least so many; None: out of reach even so."""
    high: float | None
    """With ``confidence_level``, at most so many; None: no bound can be given."""
    num_points: int


def forecast_minutes(history: Sequence[Mapping[str, Any]], wanted_map: float, confidence_level: float) -> Forecast:
    """Fit ``mAP = a + b ln(minutes)`` and read off where it reaches ``wanted_map``.

    The bounds are where the curve's own confidence band reaches it.

    Args:
        history: one entry per round, oldest first, as in ``history.json``.
        wanted_map: in percent.
        confidence_level: of each of the two bounds.

    Raises:
        UserError: fewer than ``MIN_POINTS`` rounds with new labels and a teacher that finds something.
    """
    work_R, map_R = learning_curve(history)
    if len(work_R) < MIN_POINTS or not map_R.any():
        problem = f"rounds with new labels and a teacher that finds something are {len(work_R)}"
        raise UserError(
            "gleaner people", f"{problem}, expected at least {MIN_POINTS} for a forecast", "Run more rounds."
        )
    grid = work_R[-1] * np.geomspace(1, MAX_FACTOR, 4001)
    curve, margin = _fit(work_R, map_R, grid, confidence_level)
    reached = [_first(grid, values >= wanted_map) for values in (curve + margin, curve, curve - margin)]
    low, minutes, high = (None if value is None else value - work_R[-1] for value in reached)
    return Forecast(minutes, low, high, len(work_R))


def _fit(work_R: Floats, map_R: Floats, grid: Floats, confidence_level: float) -> tuple[Floats, Floats]:
    """Return the fitted curve on ``grid``, and half the width of its band."""
    x_R, x = np.log(work_R), np.log(grid)
    centered_R = x_R - x_R.mean()
    spread = float(centered_R @ centered_R)
    slope = float(centered_R @ map_R) / spread
    curve = map_R.mean() + slope * (x - x_R.mean())
    standard_error = noise_std(x_R, map_R) * np.sqrt(1 / len(x_R) + (x - x_R.mean()) ** 2 / spread)
    return curve, float(stdtrit(len(x_R) - 2, confidence_level)) * standard_error


def _first(grid: Floats, is_reached: Any) -> float | None:
    return float(grid[int(np.argmax(is_reached))]) if is_reached.any() else None


def describe(forecast: Forecast, wanted_map: float) -> str:
    """Say a forecast in one sentence."""
    basis = f"by {forecast.num_points} rounds and a curve in the logarithm of the minutes"
    if forecast.minutes == 0:
        return f"A mAP of {wanted_map:g} is reached {basis}."
    if forecast.minutes is None:
        return f"A mAP of {wanted_map:g} is out of reach {basis}."
    most = "no upper bound" if forecast.high is None else f"at most {forecast.high:.0f}"
    return (
        f"A mAP of {wanted_map:g} takes {forecast.minutes:.0f} more minutes of labeling {basis} "
        f"(at least {forecast.low or 0:.0f}, {most})."
    )
