"""Bounds against written-out computations, and their rate of failure over many planted samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.risk_control import (
    RiskPlan,
    binomial_p_value,
    binomial_upper_bound,
    exact_interval,
    fixed_sequence,
    risk_p_value,
    risk_upper_bound,
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_with_one_box_an_image_the_test_is_the_binomial_one_written_out() -> None:
    wrong = ints(0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    expected = sum(math.comb(10, k) * 0.3**k * 0.7 ** (10 - k) for k in (0, 1))
    assert risk_p_value(wrong, np.ones(10, int), 1, 0.3) == pytest.approx(expected, rel=1e-12)


def test_with_several_boxes_the_test_is_the_capital_of_all_bets_written_out() -> None:
    accepted, wrong, risk, most = (1, 3, 2), (0, 1, 0), 0.2, 3
    capital = 0.0
    for g in range(64):
        bet = math.sin(math.pi * (g + 0.5) / 128) ** 2 / ((1 - risk) * most)
        product = 1.0
        for a, w in zip(accepted, wrong, strict=True):
            product *= 1 + bet * (risk * a - w)
        capital += product / 64
    p_value = risk_p_value(ints(*wrong), ints(*accepted), most, risk)
    assert p_value == pytest.approx(min(1 / capital, 1.0), rel=1e-9)
    assert p_value < 1
    favored = 1.0
    for a, w in zip(accepted, wrong, strict=True):
        favored *= 1 + math.sin(math.pi * 40.5 / 128) ** 2 / ((1 - risk) * most) * (risk * a - w)
    with_favorite = risk_p_value(ints(*wrong), ints(*accepted), most, risk, favored_bet=40)
    assert with_favorite == pytest.approx(min(2 / (capital + favored), 1.0), rel=1e-9)


def test_nothing_is_shown_by_no_image_and_by_images_that_are_all_wrong() -> None:
    for most in (1, 4):
        assert risk_p_value(ints(), ints(), most, 0.1) == 1
        assert risk_upper_bound(ints(), ints(), most, 0.1) == pytest.approx(1, abs=1e-9)
        many = np.full(50, most)
        assert risk_p_value(many, many, most, 0.1) == 1
        assert risk_upper_bound(many, many, most, 0.1) == pytest.approx(1, abs=1e-9)
    assert binomial_p_value(0, 0, 0.1) == 1
    assert binomial_upper_bound(0, 0, 0.1) == 1


def test_without_an_error_the_bound_is_the_root_of_the_level() -> None:
    """(1 - r)^n = 0.1 for n images, each with its one box right."""
    assert risk_upper_bound(np.zeros(30, int), np.ones(30, int), 1, 0.1) == pytest.approx(1 - 0.1 ** (1 / 30), abs=1e-9)
    assert binomial_upper_bound(0, 30, 0.1) == pytest.approx(1 - 0.1 ** (1 / 30), abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=40), st.data())
def test_more_errors_never_lower_a_bound_and_a_higher_risk_is_easier_to_show(
    images: list[tuple[int, int]], data: st.DataObject
) -> None:
    accepted = np.array([a for a, _ in images])
    wrong = np.minimum([w for _, w in images], accepted)
    more = wrong.copy()
    row = data.draw(st.integers(0, len(images) - 1))
    more[row] = accepted[row]
    assert risk_upper_bound(more, accepted, 5, 0.1) >= risk_upper_bound(wrong, accepted, 5, 0.1) - 1e-9
    low, high = sorted((data.draw(st.floats(0.01, 0.99)), data.draw(st.floats(0.01, 0.99))))
    assert risk_p_value(wrong, accepted, 5, high) <= risk_p_value(wrong, accepted, 5, low) + 1e-12


@pytest.mark.parametrize("most", [1, 3, 12])
def test_a_risk_that_is_reached_is_denied_no_more_often_than_stated(most: int) -> None:
    """Wrong boxes come by whole images, which is as dependent as boxes can be; the share of wrong boxes is 0.1."""
    rng, level, num_draws = np.random.default_rng(most), 0.1, 3000
    denied = 0
    for _ in range(num_draws):
        accepted = rng.integers(1, most + 1, size=60)
        wrong = np.where(rng.random(60) < 0.1, accepted, 0)
        denied += risk_p_value(wrong, accepted, most, 0.1) <= level
    assert denied / num_draws <= level + 3 * math.sqrt(level * (1 - level) / num_draws)


def test_boxes_counted_as_independent_would_break_the_promise() -> None:
    """Why the unit is the image: the exact binomial test on boxes is wrong far more often than stated."""
    rng, denied = np.random.default_rng(5), 0
    for _ in range(1000):
        accepted = np.full(20, 10)
        wrong = np.where(rng.random(20) < 0.1, accepted, 0)
        denied += binomial_p_value(int(wrong.sum()), int(accepted.sum()), 0.1) <= 0.1
    assert denied / 1000 > 0.3


def test_a_sequence_stops_at_the_first_failure_and_looks_no_further() -> None:
    seen = []

    def p_values():  # type: ignore[no-untyped-def]
        for value in (0.01, 0.1, 0.11, 0.001):
            seen.append(value)
            yield value

    assert fixed_sequence(p_values(), 0.1) == 2
    assert seen == [0.01, 0.1, 0.11]
    assert fixed_sequence([], 0.1) == 0


def test_images_needed_written_out() -> None:
    """0.9^22 < 0.1 < 0.9^21; with one error 0.9^n + n 0.1 0.9^(n - 1) first falls below 0.1 at 38."""
    plan = RiskPlan(np.ones(500, int), 1, 0.1)
    assert plan.images_needed(0.1, num_wrong=0) == 22
    assert plan.images_needed(0.1, num_wrong=1) == 38
    crowded = RiskPlan(np.tile(np.arange(1, 5), 100), 4, 0.1)
    needed = crowded.images_needed(0.1, num_wrong=0)
    assert needed is not None
    assert 22 < needed < 100
    sample = np.tile(np.arange(1, 5), needed // 4 + 1)
    bet = crowded.favored_bet(needed, num_wrong=0)
    assert risk_p_value(np.zeros(len(sample), int), sample, 4, 0.1, bet) <= 0.1
    assert bet > crowded.favored_bet(needed, num_wrong=0.2 * needed)  # with errors, less is put at risk
    assert RiskPlan(np.ones(5, int), 1, 1e-9).images_needed(0.1, num_wrong=0) is None


def test_exact_intervals() -> None:
    """All of 20 right: from 0.025^(1/20); symmetric for the complement; everything where nothing was drawn."""
    assert exact_interval(20, 20, 0.95)[2:] == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    low, high = exact_interval(7, 30, 0.95)[2:]
    assert exact_interval(23, 30, 0.95)[2:] == (pytest.approx(1 - high), pytest.approx(1 - low))
    assert exact_interval(0, 0, 0.95)[2:] == (0.0, 1.0)
