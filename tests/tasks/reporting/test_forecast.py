"""The forecast against a known curve, its band against a written-out one, and how often its bounds hold."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from tasks.reporting.forecast import describe, forecast_minutes
from tasks.runtime.errors import UserError

LABELS = [20, 40, 80, 120, 160, 200, 240, 280]
COST = {"minutes_per_image": 1.0, "minutes_per_box": 0.0}


def history(maps: list[float], labels: list[int] = LABELS) -> list[dict[str, Any]]:
    return [
        {"teacher": {"mAP": value}, "labels": count, "boxes": 0, "annotation_cost": COST}
        for value, count in zip(maps, labels, strict=False)
    ]


def curve(minutes: Any) -> Any:
    return -10 + 9 * np.log(minutes)


def test_a_curve_without_noise_is_read_off_exactly() -> None:
    forecast = forecast_minutes(history(curve(np.array(LABELS)).tolist()), 45.0, 0.9)
    expected = np.exp(55 / 9) - LABELS[-1]
    assert forecast.minutes == pytest.approx(expected, rel=0.01)
    assert forecast.low == pytest.approx(expected, rel=0.01)
    assert forecast.high == pytest.approx(expected, rel=0.01)


def test_bounds_are_where_the_written_out_band_reaches_it() -> None:
    noise = np.array([1, -1, 1, -1, 1, -1, 1, -1.0])
    maps = curve(np.array(LABELS)) + noise
    found = forecast_minutes(history(maps.tolist()), 46.0, 0.8)
    x = np.log(LABELS)
    slope, level = np.polyfit(x, maps, 1)
    share = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    off = share * maps[:-2] + (1 - share) * maps[2:] - maps[1:-1]
    sigma = np.sqrt(np.mean(off**2 / (share**2 + (1 - share) ** 2 + 1)))

    def band(minutes: float) -> float:
        spread = np.sum((x - x.mean()) ** 2)
        return float(t.ppf(0.8, 6) * sigma * np.sqrt(1 / 8 + (np.log(minutes) - x.mean()) ** 2 / spread))

    assert found.minutes is not None
    assert found.high is not None
    at = LABELS[-1] + np.array([found.low, found.minutes, found.high])
    values = level + slope * np.log(at) + np.array([1, 0, -1]) * [band(minutes) for minutes in at]
    np.testing.assert_allclose(values, 46.0, atol=0.05)
    assert found.low < found.minutes < found.high


def test_the_bounds_hold_as_often_as_they_say() -> None:
    truth = np.exp(56 / 9) - LABELS[-1]
    low = high = 0
    for seed in range(300):
        maps = curve(np.array(LABELS)) + np.random.default_rng(seed).normal(0, 1.0, len(LABELS))
        found = forecast_minutes(history(maps.tolist()), 46.0, 0.9)
        low += found.low <= truth
        high += found.high is None or found.high >= truth
    assert low / 300 == pytest.approx(0.9, abs=0.06)
    assert high / 300 == pytest.approx(0.9, abs=0.06)


def test_what_is_reached_and_what_is_out_of_reach_is_said() -> None:
    rising = history(curve(np.array(LABELS)).tolist())
    reached = forecast_minutes(rising, 5.0, 0.9)
    assert reached.minutes == 0
    assert "is reached" in describe(reached, 5.0)
    falling = forecast_minutes(history([30.0, 29, 28, 27, 26]), 50.0, 0.9)
    assert falling.minutes is None
    assert falling.high is None
    assert "out of reach" in describe(falling, 50.0)


def test_with_few_rounds_there_is_no_forecast() -> None:
    with pytest.raises(UserError, match="are 3, expected at least 4"):
        forecast_minutes(history([10.0, 12.0, 14.0]), 40.0, 0.9)
    with pytest.raises(UserError, match="are 0"):
        forecast_minutes([], 40.0, 0.9)
