"""The advice to stop: written-out trends, and campaigns replayed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.params import load_params
from tasks.reporting.stopping import CONSIDER_STOPPING, GO_ON, MIN_ROUNDS, noise_std, stopping_advice

REPOSITORY = Path(__file__).parents[3]
STUDIES = REPOSITORY / "docs" / "studies"
PARAMS = load_params(REPOSITORY / "params.yaml").stopping


def history_of(maps: list[float], labels: list[int] | None = None) -> list[dict[str, Any]]:
    """Rounds of 24 images with 4 boxes each: at 0.5 minutes a box and 0.25 an image, 54 minutes a batch."""
    return [
        {
            "teacher": {"mAP": reached},
            "labels": count,
            "boxes": 4 * count,
            "annotation_cost": {"minutes_per_image": 0.25, "minutes_per_box": 0.5},
        }
        for reached, count in zip(maps, labels or [24 * (n + 1) for n in range(len(maps))], strict=True)
    ]


def test_a_straight_rise_has_its_slope_and_no_noise() -> None:
    found = stopping_advice(history_of([10.0 + 2 * n for n in range(10)]), PARAMS)
    assert found["advice"] == GO_ON
    assert found["rounds"] == PARAMS.window_rounds
    assert found["points_per_batch"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})
    assert found["next_batches_points"]["mean"] == pytest.approx(2.0 * PARAMS.horizon_batches)
    assert found["noise_points"] == pytest.approx(0)
    assert found["minutes_per_point"] == pytest.approx(27.0)


def test_a_flat_curve_is_a_reason_to_stop_and_has_no_price() -> None:
    found = stopping_advice(history_of([20.0, 30.0] + [40.0] * 8), PARAMS)
    assert found["advice"] == CONSIDER_STOPPING
    assert found["minutes_per_point"] is None
    assert found["points_per_batch"]["mean"] == pytest.approx(0)
    assert found["reason"].startswith("the next 3 batches will bring at most 0.9 points of mAP by the trend (90 % conf")


def test_the_interval_of_a_noisy_line_is_that_of_the_formula() -> None:
    """Ups and downs of 1 about a level: each point is 2 off the line between its neighbors, so noise^2 = 4 / 1.5."""
    maps = [40.0 + (-1) ** n for n in range(8)]
    found = stopping_advice(history_of(maps), PARAMS)
    noise = np.sqrt(4 / 1.5)
    assert found["noise_points"] == pytest.approx(noise, abs=1e-3)
    x = np.arange(8.0)
    slope, spread = np.polyfit(x, maps, 1)[0], ((x - x.mean()) ** 2).sum()
    margin = 1.43976 * noise / np.sqrt(spread)  # 90 % quantile of Student's t with 6 degrees of freedom
    assert found["points_per_batch"]["high"] == pytest.approx(slope + margin, abs=1e-3)
    assert found["points_per_batch"]["low"] == pytest.approx(slope - margin, abs=1e-3)
    assert found["next_batches_points"]["high"] == pytest.approx(3 * (slope + margin), abs=1e-3)  # 0.80, below 1
    assert found["advice"] == CONSIDER_STOPPING


@pytest.mark.parametrize("maps", [[], [30.0] * (MIN_ROUNDS - 1), [0.0] * 12])
def test_without_a_trend_the_advice_is_to_go_on(maps: list[float]) -> None:
    found = stopping_advice(history_of(maps), PARAMS)
    assert found["advice"] == GO_ON
    assert found["points_per_batch"] is None
    assert f"a trend needs {MIN_ROUNDS}" in found["reason"]


def test_a_round_without_new_labels_is_no_point_of_the_trend() -> None:
    maps = [10.0 + 2 * n for n in range(8)]
    changed = [*maps[:4], 99.0, *maps[4:]]  # its labels are those of the round after it
    labels = [24, 48, 72, 96, 120, 120, 144, 168, 192]
    assert stopping_advice(history_of(changed, labels), PARAMS) == stopping_advice(history_of(maps), PARAMS)


def test_a_curve_does_not_count_as_noise() -> None:
    x = np.arange(40.0)
    smooth = 50 - 30 * np.exp(-x / 8)
    assert noise_std(x, smooth) < 0.1
    noisy = smooth + np.random.default_rng(3).normal(0, 2, 40)
    assert noise_std(x, noisy) == pytest.approx(2, rel=0.25)


def stored_noise() -> dict[str, float]:
    """Standard deviation of a round about the line between its neighbors, in each stored study with three rounds."""
    found = {}
    for name in ("demo", "bccd", "bccd-first"):
        results = pd.read_parquet(STUDIES / name / "results.parquet")
        curves = results.pivot_table(index=["arm", "seed"], columns="round", values="teacher_map").dropna()
        off_line = curves[1] - (curves[0] + curves[2]) / 2
        found[name] = float(np.sqrt((off_line**2).mean() * 2 / 3))
    return found


def replay(noise: float, campaigns: int, rounds: int = 31) -> tuple[float, float]:
    """Share of simulated campaigns that are advised to stop, and of these the share within 1 point of the plateau.

    Half of the curves approach it exponentially, half by a power of the labels (as learning curves of detectors do).
    """
    random, x, stopped_at_gap = np.random.default_rng(17), np.arange(float(rounds)), []
    for number in range(campaigns):
        top, start = random.uniform(35, 60), random.uniform(8, 30)
        left = (
            np.exp(-x / random.uniform(1.5, 6))
            if number % 2
            else (1 + x / random.uniform(0.5, 2)) ** -random.uniform(0.8, 2)
        )
        curve = top - (top - start) * left
        history = history_of((curve + random.normal(0, noise, rounds)).tolist())
        advised = (n for n in range(1, rounds + 1) if stopping_advice(history[:n], PARAMS)["advice"] != GO_ON)
        if (first := next(advised, None)) is not None:
            stopped_at_gap.append(curve[-1] - curve[first - 1])
    return len(stopped_at_gap) / campaigns, float(np.mean(np.array(stopped_at_gap) <= 1.0))


@pytest.mark.parametrize("noise", [0.5, 1.5, *stored_noise().values()])
def test_simulated_campaigns_stop_within_a_point_of_the_plateau(noise: float) -> None:
    stopped, near_plateau = replay(noise, campaigns=100)
    assert near_plateau >= 0.8
    assert stopped >= 0.8


@pytest.mark.parametrize("name", ["demo", "bccd", "bccd-first"])
def test_no_stored_campaign_of_three_rounds_is_advised_to_stop(name: str) -> None:
    """None of them had reached a plateau: the demo still gained 5 to 13 points in its last batch."""
    results = pd.read_parquet(STUDIES / name / "results.parquet")
    for _, campaign in results.sort_values("round").groupby(["arm", "seed"]):
        history = history_of(campaign["teacher_map"].tolist(), campaign["num_labeled"].tolist())
        assert all(stopping_advice(history[:n], PARAMS)["advice"] == GO_ON for n in range(1, len(history) + 1))
