"""The cost of labeling, fitted: held against an independent fit, lunch breaks, and data that do not tell."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.data.schemas import Box, LabeledImage
from tasks.params.stages import BudgetParams
from tasks.selection import annotation_cost
from tasks.selection.annotation_cost import fit_annotation_cost

BUDGET = BudgetParams(
    unit="minutes", amount=60.0, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=6, relabel_frac=0.0
)
_number = itertools.count()


def make_annotation(boxes: int, minutes: float | None, **changes: object) -> LabeledImage:
    drawn_boxes = tuple(Box(category="a", xyxy_px=(10.0 * n, 0, 10.0 * n + 5, 5)) for n in range(boxes))
    label = LabeledImage(
        image_id=f"{next(_number):016x}",
        status="labeled" if boxes else "empty",
        boxes=drawn_boxes,
        annotator="ann",
        finished_at="2026-03-01T10:00:00+00:00",
        seconds_spent=None if minutes is None else 60 * minutes,
        offered_batch=1,
    )
    return label.model_copy(update=changes)


def timed_annotations(boxes: Sequence[int], per_image: float, per_box: float) -> list[LabeledImage]:
    return [make_annotation(n, per_image + n * per_box) for n in boxes]


@given(
    boxes=st.lists(st.integers(0, 30), max_size=30)
    .map(lambda n: [*n, 0, 2, 3, 5, 5, 7, 8, 11, 11, 12, 13])
    .filter(lambda n: len(n) - n.count(max(n, key=n.count)) >= 5),
    per_image=st.floats(0.05, 5),
    per_box=st.floats(0, 3),
)
def test_a_constant_pace_is_found_whatever_the_order(boxes: list[int], per_image: float, per_box: float) -> None:
    answers = timed_annotations(boxes, per_image, per_box)
    cost = fit_annotation_cost(answers, BUDGET)
    assert cost.is_fitted
    assert (cost.minutes_per_image, cost.minutes_per_box) == pytest.approx((per_image, per_box), abs=1e-3)
    assert fit_annotation_cost(reversed(answers), BUDGET) == cost
    assert (cost.num_timed, cost.num_outliers) == (len(boxes), 0)


def test_of_noisy_times_it_is_the_least_squares_line() -> None:
    random = np.random.default_rng(3)
    boxes = random.integers(0, 12, 200)
    minutes = (0.3 + 0.4 * boxes) * random.lognormal(0, 0.15, 200)
    cost = fit_annotation_cost([make_annotation(int(n), t) for n, t in zip(boxes, minutes, strict=True)], BUDGET)
    slope = np.cov(boxes, minutes)[0, 1] / np.var(boxes, ddof=1)  # the textbook's formula, not the library
    assert cost.num_outliers == 0
    assert cost.minutes_per_box == pytest.approx(slope, abs=1e-4)
    assert cost.minutes_per_image == pytest.approx(minutes.mean() - slope * boxes.mean(), abs=1e-4)
    assert cost.minutes_per_box == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("breaks", [1, 3, 8])
def test_lunch_breaks_do_not_count(breaks: int) -> None:
    random = np.random.default_rng(breaks)
    boxes = [int(n) for n in random.integers(0, 9, 40)]
    pace = [make_annotation(n, (0.25 + 0.5 * n) * float(random.uniform(0.8, 1.25))) for n in boxes]
    lunch = [make_annotation(int(n), 45.0) for n in random.integers(0, 9, breaks)]
    cost = fit_annotation_cost([*pace, *lunch], BUDGET)
    assert (cost.num_outliers, cost.num_timed) == (breaks, 40 + breaks)
    assert f"{breaks} that took far longer" in cost.reason
    without = fit_annotation_cost(pace, BUDGET)
    assert (cost.minutes_per_image, cost.minutes_per_box) == (without.minutes_per_image, without.minutes_per_box)


def test_slow_images_are_work_not_lunch() -> None:
    answers = [*timed_annotations(range(12), 0.2, 0.5), *(make_annotation(n, 2.9 * (0.2 + 0.5 * n)) for n in (2, 5))]
    assert fit_annotation_cost(answers, BUDGET).num_outliers == 0


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (lambda n: 3.0 - 0.2 * n, "no cost per box"),
        (lambda n: max(0.02, 2.0 * n - 1.0), "no cost per image"),
    ],
)
def test_no_cost_is_negative_and_no_image_is_free(minutes, expected) -> None:
    cost = fit_annotation_cost([make_annotation(n, minutes(n)) for n in range(1, 9)], BUDGET)
    assert cost.is_fitted
    if expected == "no cost per box":
        assert cost.minutes_per_box == 0
        assert cost.minutes_per_image == pytest.approx(3.0 - 0.2 * 4.5)  # the mean
    else:
        assert cost.minutes_per_image == pytest.approx(1 / 60, abs=1e-4)


def test_only_the_newest_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit of tens of thousands would take minutes each night."""
    monkeypatch.setattr(annotation_cost, "_MAX_ANNOTATIONS", 40)
    old, new = (timed_annotations([1, 2, 3, 4] * 10, per_image, 0.5) for per_image in (9.0, 1.0))
    assert fit_annotation_cost([*old, *new], BUDGET) == fit_annotation_cost(new, BUDGET)


def test_too_few_timed_answers_leave_the_parameters_and_say_so() -> None:
    untimed = [
        make_annotation(3, None),
        make_annotation(3, 0.0),
        *(make_annotation(0, 2.0, status="skipped") for _ in range(9)),
    ]
    cost = fit_annotation_cost([*timed_annotations(range(5), 1.0, 1.0), *untimed], BUDGET)
    assert (cost.is_fitted, cost.minutes_per_image, cost.minutes_per_box) == (False, 0.2, 0.5)
    assert cost.num_timed == 5
    assert "answers with a measured time are 5, fewer than budget.min_timed_annotations (6)" in cost.reason
    assert fit_annotation_cost([], BUDGET).num_timed == 0


def test_checks_of_labels_do_not_make_labeling_look_cheap() -> None:
    """Looking at boxes that are drawn and right takes seconds."""
    answers = timed_annotations(range(12), 1.0, 1.0)
    checks = [make_annotation(n, 0.1, checks_batch=0) for n in range(12)]
    assert fit_annotation_cost([*answers, *checks], BUDGET) == fit_annotation_cost(answers, BUDGET)


def test_images_with_equally_many_boxes_cannot_tell_the_two_apart() -> None:
    cost = fit_annotation_cost(timed_annotations([2] * 20, 1.0, 1.0), BUDGET)
    assert (cost.is_fitted, cost.minutes_per_box) == (False, 0.5)
    assert "nearly all of 20 timed answers have the same number of boxes" in cost.reason


def test_a_slope_that_hangs_on_one_lunch_break_is_not_believed() -> None:
    cost = fit_annotation_cost([*timed_annotations([2] * 20, 1.0, 1.0), make_annotation(3, 600.0)], BUDGET)
    assert (cost.is_fitted, cost.minutes_per_box) == (False, 0.5)
    rest = [*timed_annotations([2] * 20, 1.0, 1.0), *timed_annotations([1, 3, 3, 4], 1.0, 1.0)]
    cost = fit_annotation_cost([*rest, make_annotation(3, 600.0)], BUDGET)
    assert not cost.is_fitted  # four are left that tell
    cost = fit_annotation_cost([*rest, make_annotation(0, 1.0), make_annotation(3, 600.0)], BUDGET)
    assert (cost.minutes_per_image, cost.minutes_per_box, cost.num_outliers) == (1.0, 1.0, 1)


def test_of_a_changed_answer_the_last_time_counts_once() -> None:
    pace = timed_annotations(range(8), 0.5, 1.0)
    first = pace[3].model_copy(update={"seconds_spent": 1.0})
    assert fit_annotation_cost([first, *pace], BUDGET) == fit_annotation_cost(pace, BUDGET)
    second_opinion = pace[3].model_copy(update={"annotator": "bob"})
    assert fit_annotation_cost([*pace, second_opinion], BUDGET).num_timed == 9


def test_a_stored_time_that_no_clock_can_show_is_left_out() -> None:
    pace = timed_annotations(range(8), 0.5, 1.0)
    poisonous = pace[3].model_copy(update={"image_id": "f" * 16, "seconds_spent": 1e22})
    assert fit_annotation_cost([*pace, poisonous], BUDGET) == fit_annotation_cost(pace, BUDGET)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.none() | st.floats(0, 1e5)), max_size=30),
)
@example([(0, 2.0), (1, 2.0), (2, 5e-324), (3, 1.0), (4, 2.0), (5, 2.0)])  # over any other number it is 0
def test_whatever_the_clock_says_the_cost_can_be_used(rows: list[tuple[int, float | None]]) -> None:
    cost = fit_annotation_cost([make_annotation(n, minutes) for n, minutes in rows], BUDGET)
    assert np.isfinite([cost.minutes_per_image, cost.minutes_per_box]).all()
    assert cost.minutes_per_image > 0
    assert cost.minutes_per_box >= 0
    assert cost.num_outliers <= cost.num_timed <= len(rows)
    assert cost.reason
