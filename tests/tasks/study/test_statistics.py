import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.study.statistics import (
    Curve,
    Interval,
    compare,
    compare_area,
    compare_final,
    cost_to_reach,
    holm,
    mean_value,
    p_value,
    paired_bootstrap,
    t_interval,
)

maps = st.floats(0, 100).map(lambda value: round(value, 3))
differences = st.lists(st.floats(-50, 50).map(lambda value: round(value, 3)), min_size=2, max_size=6)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    values = draw(st.lists(maps, min_size=2, max_size=6))
    steps = draw(st.lists(st.integers(1, 50), min_size=len(values), max_size=len(values)))
    return Curve(tuple(float(x) for x in itertools.accumulate(steps)), tuple(values))


def reference_mean(curve: Curve) -> float:
    """The trapezoid rule, term by term."""
    total = 0.0
    for index in range(1, len(curve.cost)):
        width = curve.cost[index] - curve.cost[index - 1]
        total += width * (curve.values[index] + curve.values[index - 1]) / 2
    return total / (curve.cost[-1] - curve.cost[0])


@given(curves())
def test_the_mean_height_is_the_trapezoid_rule_over_the_range(curve: Curve) -> None:
    assert mean_value(curve, curve.cost[0], curve.cost[-1]) == pytest.approx(reference_mean(curve))


@given(curves(), st.floats(0.01, 0.99))
def test_areas_of_two_parts_add_up(curve: Curve, share: float) -> None:
    low, high = curve.cost[0], curve.cost[-1]
    middle = low + share * (high - low)
    parts = (middle - low) * mean_value(curve, low, middle) + (high - middle) * mean_value(curve, middle, high)
    assert parts == pytest.approx((high - low) * mean_value(curve, low, high))


def test_a_range_without_width_gives_the_height_there() -> None:
    assert mean_value(Curve((10, 20), (30.0, 50.0)), 15, 15) == 40.0


def test_arms_with_other_numbers_of_labels_are_compared_where_both_have_been() -> None:
    ours, theirs = Curve((10, 20, 40), (10.0, 20.0, 60.0)), Curve((10, 30), (10.0, 30.0))
    # between 10 and 30 labels: ours 10 -> 20 -> 40 gives 22.5, theirs 20; at 30 labels 40 against 30
    assert compare_area([ours], [theirs], seed=0).mean == pytest.approx(2.5)
    assert compare_final([ours], [theirs], seed=0).mean == pytest.approx(10.0)


@given(differences)
def test_the_bootstrap_is_that_of_all_resamples(values: list[float]) -> None:
    """With few seeds every resample can be written down; 10,000 draws must come close to their quantiles."""
    means = sorted(math.fsum(drawn) / len(values) for drawn in itertools.product(values, repeat=min(len(values), 4)))
    if len(values) > 4:
        return
    interval = paired_bootstrap(values, seed=0)
    assert interval is not None
    share_below = np.mean(np.array(means) < interval.low - 1e-9)
    share_above = np.mean(np.array(means) > interval.high + 1e-9)
    assert share_below <= 0.025 + 0.006
    assert share_above <= 0.025 + 0.006
    assert np.mean(np.array(means) <= interval.low + 1e-9) >= 0.025 - 0.006
    assert np.mean(np.array(means) >= interval.high - 1e-9) >= 0.025 - 0.006


@given(differences)
def test_the_interval_lies_within_the_data_and_is_repeatable(values: list[float]) -> None:
    interval = paired_bootstrap(values, seed=3)
    assert interval is not None
    assert interval == paired_bootstrap(values, seed=3)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


@given(differences, st.floats(-20, 20))
def test_a_shift_shifts_the_interval(values: list[float], shift: float) -> None:
    there, here = paired_bootstrap([value + shift for value in values], seed=1), paired_bootstrap(values, seed=1)
    assert here is not None
    assert there is not None
    assert (there.low, there.high) == pytest.approx((here.low + shift, here.high + shift), abs=1e-9)


def test_seeds_share_the_resample_of_the_images() -> None:
    """One validation set measures all seeds, so its noise does not average out: the mean is -1 or +1, never between."""
    assert paired_bootstrap([0.0] * 6, seed=0, resampled=[[-1.0, 1.0]] * 6) == Interval(-1.0, 1.0)


def test_resamples_of_the_images_widen_the_interval_as_written_out() -> None:
    """Two seeds, two resamples of the images: 8 equally likely means, written down."""
    redrawn = [[0.0, 2.0], [3.0, 9.0]]
    means = [(a + b) / 2 for sample in zip(*redrawn, strict=True) for a, b in itertools.product(sample, repeat=2)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    interval = paired_bootstrap([1.0, 6.0], seed=0, resampled=redrawn)
    assert interval == Interval(low, high)
    assert interval != paired_bootstrap([1.0, 6.0], seed=0)
    assert paired_bootstrap([1.0, 6.0], seed=0, resampled=[[1.0], []]) == paired_bootstrap([1.0, 6.0], seed=0)


def test_curves_are_compared_draw_by_draw() -> None:
    """Ours is 2 points better on every draw, however much the draws differ: pairing leaves no doubt."""
    theirs = [Curve((10, 20), (30.0, 40.0), tuple((30.0 + d, 40.0 + 2 * d) for d in range(-3, 4))) for _ in range(3)]
    ours = [
        Curve(
            curve.cost,
            tuple(v + 2 for v in curve.values),
            tuple(tuple(v + 2 for v in d) for d in curve.resampled_values),
        )
        for curve in theirs
    ]
    for found in (compare_area(ours, theirs, seed=0), compare_final(ours, theirs, seed=0)):
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == pytest.approx((2.0, 2.0))


@given(differences)
def test_the_t_interval_is_the_one_sample_t_test_turned_round(values: list[float]) -> None:
    interval = t_interval(values)
    assert interval is not None
    if np.ptp(values) < 1e-6:
        assert interval.high - interval.low == pytest.approx(0, abs=1e-5)
        return
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval_and_claims_nothing() -> None:
    single = compare([5.0], seed=0)
    assert (single.interval, single.t_interval) == (None, None)
    assert single.verdict == "no claim: one seed has no interval"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, -1.0, 0.5], "not distinguishable"),
        ([0.0, 0.0, 0.0], "not distinguishable"),
        ([1.0, 4.0, 9.0], "not distinguishable: above by the bootstrap over seeds, but the t interval includes 0"),
        ([2.0, 2.1, 1.9], "above"),
        ([-2.0, -2.1, -1.9], "below"),
        ([2.0, 2.1], "no claim from 2 seeds"),
    ],
)
def test_the_verdict_in_words(values: list[float], verdict: str) -> None:
    assert compare(values, seed=0).verdict == verdict


@given(st.integers(2, 4), st.data())
def test_three_seeds_of_one_sign_exclude_zero_as_the_reading_warns(count: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(0.5, 9), min_size=count, max_size=count))
    interval = paired_bootstrap(values, seed=0)
    assert interval is not None
    assert interval.excludes_zero


@given(curves(), maps)
def test_the_cost_to_reach_is_the_first_crossing(curve: Curve, target: float) -> None:
    needed = cost_to_reach(curve, target)
    if needed is None:
        assert max(curve.values) < target
        return
    assert curve.cost[0] <= needed <= curve.cost[-1]
    assert np.interp(needed, curve.cost, curve.values) >= target - 1e-6
    before = [value for x, value in zip(curve.cost, curve.values, strict=True) if x < needed - 1e-9]
    assert all(value < target for value in before)


def test_the_cost_to_reach_written_out() -> None:
    curve = Curve((10, 20, 30, 40), (10.0, 30.0, 20.0, 50.0))
    assert cost_to_reach(curve, 5) == 10
    assert cost_to_reach(curve, 20) == 15
    assert cost_to_reach(curve, 35) == 35
    assert cost_to_reach(curve, 51) is None


@given(differences)
def test_the_p_value_and_the_t_interval_say_the_same(values: list[float]) -> None:
    if np.ptp(values) < 1e-6:
        return
    interval, p = t_interval(values), p_value(values)
    assert interval is not None
    assert p is not None
    if abs(p - 0.05) > 1e-6:
        assert interval.excludes_zero == (p < 0.05)


def test_differences_without_spread_have_a_p_value_at_the_end_of_the_range() -> None:
    assert (p_value([2.0, 2.0]), p_value([0.0, 0.0, 0.0]), p_value([1.0])) == (0.0, 1.0, None)


def test_holms_correction_written_out() -> None:
    # sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.2; the third may not be below the second
    assert holm([0.03, 0.01, None, 0.2, 0.02]) == [pytest.approx(v) if v else None for v in (0.06, 0.04, 0, 0.2, 0.06)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(values: list[float]) -> None:
    for value, adjusted in zip(values, holm(values), strict=True):
        assert adjusted is not None
        assert value <= adjusted <= min(1.0, len(values) * value) + 1e-12


def test_one_of_many_comparisons_has_to_be_surer() -> None:
    found = compare([2.0, 2.1, 1.9], seed=0)
    assert found.corrected_verdict(0.04, 6) == "above"
    assert found.corrected_verdict(0.06, 6) == "not distinguishable: above alone, but not as one of 6 comparisons"
    assert compare([1.0, -1.0, 0.5], seed=0).corrected_verdict(0.9, 6) == "not distinguishable"
