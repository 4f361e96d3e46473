"""Precision of pseudo-labels: isotonic estimate, threshold and bound against written-out numbers."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.pseudo_label_precision import (
    assess_class,
    calibrated_precision,
    is_right,
    lower_bound,
    precision_threshold,
)

SETTINGS: dict[str, Any] = {"fixed_threshold": 0.7, "target_precision": 0.8, "min_precision": 0.0, "min_terms": 5}


def test_a_detection_is_right_if_it_is_the_best_one_on_an_object_of_its_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 4]], dtype=float)
    scores, classes = np.array([0.6, 0.9, 0.8, 0.9, 0.95]), np.array([0, 0, 1, 0, 0])
    truth, true_classes = np.array([[0, 0, 10, 10]], dtype=float), np.array([0])
    # Second copy of an object, wrong class, nothing there, IoU of 0.4: all wrong.
    assert is_right(boxes, scores, classes, truth, true_classes).tolist() == [False, True, False, False, False]


def test_an_image_without_objects_or_detections() -> None:
    nothing, no_ids = np.zeros((0, 4)), np.zeros(0, dtype=int)
    assert is_right(np.ones((2, 4)), np.ones(2), np.array([0, 1]), nothing, no_ids).tolist() == [False, False]
    assert len(is_right(nothing, np.zeros(0), no_ids, np.ones((1, 4)), np.array([0]))) == 0


def test_the_isotonic_estimate_pools_what_falls() -> None:
    """0.3 wrong; 0.4 right and 0.5 wrong are pooled to 1/2; of two at 0.6 one is right: 1/2; 0.9 right."""
    scores = np.array([0.3, 0.4, 0.5, 0.6, 0.6, 0.9])
    distinct, precision = calibrated_precision(scores, np.array([False, True, False, True, False, True]))
    assert distinct.tolist() == [0.3, 0.4, 0.5, 0.6, 0.9]
    assert precision.tolist() == pytest.approx([0, 1 / 2, 1 / 2, 1 / 2, 1])


def test_the_threshold_is_the_lowest_score_that_reaches_the_target() -> None:
    scores = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    right = np.array([False, False, True, False, True, True])
    assert precision_threshold(scores, right, 0.5) == 0.4
    assert precision_threshold(scores, right, 0.6) == 0.6
    assert precision_threshold(scores, np.zeros(6, dtype=bool), 0.6) is None


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=40))
def test_the_estimate_never_falls_and_keeps_the_mean(rows: list[tuple[float, bool]]) -> None:
    scores, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    distinct, precision = calibrated_precision(scores, right)
    assert (np.diff(precision) >= -1e-12).all()
    counts = np.array([(scores == score).sum() for score in distinct])
    assert (precision * counts).sum() == pytest.approx(right.sum())


@pytest.mark.parametrize(("num_right", "num_terms"), [(1, 1), (14, 20), (20, 20), (3, 50)])
def test_the_lower_bound_is_the_share_at_which_so_many_right_ones_are_a_one_in_ten_event(
    num_right: int, num_terms: int
) -> None:
    share = lower_bound(num_right, num_terms)
    tail = sum(
        math.comb(num_terms, k) * share**k * (1 - share) ** (num_terms - k) for k in range(num_right, num_terms + 1)
    )
    assert tail == pytest.approx(0.1, abs=1e-6)
    assert lower_bound(0, num_terms) == 0.0


def test_a_class_with_too_little_evidence_keeps_the_fixed_threshold_and_takes_part() -> None:
    few = assess_class(np.array([0.4] * 4), np.zeros(4, dtype=bool), **SETTINGS | {"min_precision": 0.9})
    assert (few.threshold, few.is_measured, few.lower_bound, few.takes_part) == (0.7, False, None, True)
    never_seen = assess_class(np.zeros(0), np.zeros(0, dtype=bool), **SETTINGS)
    assert (never_seen.threshold, never_seen.num_terms, never_seen.precision) == (0.7, 0, None)
    assert never_seen.takes_part


def test_the_measured_threshold_needs_enough_terms_above_it() -> None:
    scores, right = np.array([0.3] * 20 + [0.9] * 4), np.array([False] * 20 + [True] * 4)
    assert assess_class(scores, right, **SETTINGS).is_measured is False
    scores, right = np.array([0.3] * 20 + [0.9] * 5), np.array([False] * 20 + [True] * 5)
    found = assess_class(scores, right, **SETTINGS)
    assert (found.threshold, found.is_measured, found.num_terms, found.precision) == (0.9, True, 5, 1.0)


def test_a_rare_unsure_class_gets_a_lower_threshold_than_a_frequent_overconfident_one() -> None:
    unsure = assess_class(np.full(30, 0.35), np.array([True] * 28 + [False] * 2), **SETTINGS)
    confident_scores = np.repeat([0.6, 0.8, 0.95], 100)
    confident_right = np.concatenate([np.arange(100) < share for share in (30, 60, 90)])
    confident = assess_class(confident_scores, confident_right, **SETTINGS)
    assert unsure.threshold == 0.35
    assert confident.threshold == 0.95


def test_a_class_that_never_reaches_the_target_takes_no_part() -> None:
    found = assess_class(np.full(50, 0.9), np.arange(50) < 25, **SETTINGS)
    assert (found.threshold, found.is_measured, found.takes_part) == (0.7, False, False)
    assert found.precision == 0.5


def test_the_floor_is_held_against_the_lower_bound() -> None:
    """14 of 20: the bound at 90 % is 0.532, the share 0.7."""
    fixed = SETTINGS | {"target_precision": None, "min_terms": 20}
    scores, right = np.full(20, 0.8), np.arange(20) < 14
    assert lower_bound(14, 20) == pytest.approx(0.532, abs=1e-3)
    assert assess_class(scores, right, **fixed | {"min_precision": 0.53}).takes_part
    assert not assess_class(scores, right, **fixed | {"min_precision": 0.54}).takes_part
    assert assess_class(scores[:19], right[:19], **fixed | {"min_precision": 0.54}).takes_part  # too few to know
