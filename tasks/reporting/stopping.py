"""Advise whether further labels still pay, from the campaign's history (docs/method.md#stopping).

Shape shorthand: R rounds with a measured teacher.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tasks.params.stages import StoppingParams
from tasks.runtime.formatting import number, pluralize

Floats = NDArray[np.float64]
GO_ON, CONSIDER_STOPPING = "go_on", "consider_stopping"
MIN_ROUNDS = 6
"""Measured rounds before there is an advice to stop: with fewer, noise cannot be told from a trend."""
_DIGITS = 4


def stopping_advice(history: Sequence[Mapping[str, Any]], params: StoppingParams) -> dict[str, Any]:
    """Compare what the next batches may still bring with what is asked for.

    Args:
        history: one entry per round, oldest first, as in ``history.json``.
        params: rounds of the trend, batches ahead, least gain and confidence.

    Returns:
        ``advice`` (``go_on`` or ``consider_stopping``) and ``reason`` in words; ``rounds`` of the trend;
        ``points_per_batch`` of mAP with ``mean``, ``low`` and ``high``; ``next_batches_points``, the same for
        ``stopping.horizon_batches``; ``noise_points``, the standard deviation of a round about the trend;
        ``minutes_per_point`` of mAP. All but the first three are None where there is no trend, and the last where
        the trend does not rise.
    """
    work_R, map_R = learning_curve(history)
    if len(work_R) < MIN_ROUNDS or not map_R.any():
        return {
            "advice": GO_ON,
            "reason": f"{pluralize(len(work_R), 'round')} with new labels and a teacher that finds something, "
            f"a trend needs {MIN_ROUNDS}",
            "rounds": len(work_R),
            **dict.fromkeys(("points_per_batch", "next_batches_points", "noise_points", "minutes_per_point")),
        }
    noise = noise_std(work_R, map_R)
    recent = slice(-params.window_rounds, None)
    slope, standard_error = _slope(work_R[recent], map_R[recent], noise)
    margin = float(stdtrit(len(work_R) - 2, params.confidence_level)) * standard_error
    batch_minutes = float(np.median(np.diff(work_R[recent])))
    per_batch = _interval(slope, margin, batch_minutes)
    ahead = _interval(slope, margin, batch_minutes * params.horizon_batches)
    stop = ahead["high"] < params.min_gain_points
    return {
        "advice": CONSIDER_STOPPING if stop else GO_ON,
        "reason": _reason(ahead, params, stop=stop),
        "rounds": len(work_R[recent]),
        "points_per_batch": per_batch,
        "next_batches_points": ahead,
        "noise_points": round(noise, _DIGITS),
        "minutes_per_point": round(1 / slope, 2) if slope > 0 else None,
    }


def learning_curve(history: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
    """Return the minutes of work and the teacher's mAP of each round with new labels, (R,) each, minutes ascending."""
    measured = [entry for entry in history if entry["teacher"]["mAP"] is not None]
    work_R = _work(measured)
    # A round that only changed or took away labels is no point of the trend: the next one stands for it.
    is_point_R = work_R < np.append(np.minimum.accumulate(work_R[::-1])[::-1], np.inf)[1:]
    map_R = np.array([entry["teacher"]["mAP"] for entry in measured], dtype=np.float64)
    return work_R[is_point_R], map_R[is_point_R]


def minutes_per_point(found: Mapping[str, Any]) -> str:
    """Say what one further point of mAP costs by the trend of an advice."""
    minutes = found["minutes_per_point"]
    return "and no price can be given" if minutes is None else f"a point for {pluralize(round(minutes), 'minute')}"


def _work(history: Sequence[Mapping[str, Any]]) -> Floats:
    """Minutes of work on the labels of each round by the newest estimate of an image's cost, (R,)."""
    if not history:
        return np.zeros(0)
    cost = history[-1]["annotation_cost"]
    per_image, per_box = cost["minutes_per_image"], cost["minutes_per_box"]
    if per_image == per_box == 0:  # nobody said what work costs: count images
        per_image = 1.0
    return np.array([per_image * entry["labels"] + per_box * entry["boxes"] for entry in history], dtype=np.float64)


def noise_std(x_R: Floats, y_R: Floats) -> float:
    """Estimate the noise of a smooth curve from how far each point is from the line between its neighbors.

    Gasser, Sroka and Jennen-Steinmetz, Residual variance and residual pattern in nonlinear regression, 1986. A level
    or a slope of the curve does not count as noise.

    Args:
        x_R: ascending, at least three.
        y_R: the curve with its noise.
    """
    left_share = (x_R[2:] - x_R[1:-1]) / (x_R[2:] - x_R[:-2])
    off_line = left_share * y_R[:-2] + (1 - left_share) * y_R[2:] - y_R[1:-1]
    variance = np.mean(off_line**2 / (left_share**2 + (1 - left_share) ** 2 + 1))
    return float(np.sqrt(variance))


def _slope(x_R: Floats, y_R: Floats, noise: float) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error for a known noise."""
    centered_R = x_R - x_R.mean()
    spread = float(centered_R @ centered_R)
    return float(centered_R @ y_R) / spread, noise / float(np.sqrt(spread))


def _interval(slope: float, margin: float, minutes: float) -> dict[str, float]:
    bounds = {"mean": slope, "low": slope - margin, "high": slope + margin}
    return {name: round(value * minutes, _DIGITS) for name, value in bounds.items()}


def _reason(ahead: Mapping[str, float], params: StoppingParams, *, stop: bool) -> str:
    batches = "next batch" if params.horizon_batches == 1 else f"next {params.horizon_batches} batches"
    level = f"{number(100 * params.confidence_level, 0)} % confidence"
    asked = f"stopping.min_gain_points is {number(params.min_gain_points)}"
    if stop:
        most = f"at most {number(ahead['high'])}" if ahead["high"] > 0 else "no more"
        return f"the {batches} will bring {most} points of mAP by the trend ({level}); {asked}"
    return f"the {batches} may bring up to {number(ahead['high'])} points of mAP by the trend ({level}); {asked}"
