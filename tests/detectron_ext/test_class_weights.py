"""Weights of the classes: what raises which, shrinkage, bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.class_weights import bound, class_difficulty, class_weights
from detectron_ext.detection_loss import RealizedLoss


def make_loss(positive: list[float], boxes: list[int], background: list[float], claims: list[int]) -> RealizedLoss:
    return RealizedLoss(np.array(positive), np.array(boxes), np.array(background), np.array(claims))


def test_difficulty_is_the_mean_per_box_and_per_claim() -> None:
    losses = [make_loss([1.0, 0.0], [2, 0], [0.0, 3.0], [2, 1]), make_loss([2.0, 0.0], [4, 0], [0.0, 0.0], [0, 2])]
    positive_K, background_K = class_difficulty(losses, 2)
    assert positive_K[0] == pytest.approx(3 / 6)
    assert math.isnan(positive_K[1])
    assert background_K.tolist() == pytest.approx([0.0, 3 / 3])


def test_weights_are_shrunk_by_the_number_of_terms() -> None:
    """Difficulties 0.5 and 1.5 are 0.5 and 1.5 of their mean; k = 10 draws 30 terms less than 2."""
    losses = [make_loss([15.0, 3.0], [30, 2], [0.0, 0.0], [0, 0])]
    shrunk = np.array([(30 * 0.5 + 10) / 40, (2 * 1.5 + 10) / 12])
    weights = class_weights(losses, 2, prior_count=10.0, weight_max=3.0)
    assert weights.positive_K == pytest.approx(shrunk / shrunk.mean())
    assert weights.claimed_background_K.tolist() == [1.0, 1.0]


def test_a_class_that_is_only_hallucinated_gets_no_more_weight_for_its_objects() -> None:
    """Class 2 never occurs and is claimed in each image; class 0 is missed often, class 1 rarely."""
    losses = [make_loss([2.0, 0.1, 0.0], [1, 1, 0], [0.0, 0.0, 1.5], [1, 1, 2]) for _ in range(50)]
    weights = class_weights(losses, 3, prior_count=20.0, weight_max=3.0)
    assert weights.positive_K[2] == 1.0
    assert weights.positive_K[0] > 1 > weights.positive_K[1]
    assert weights.claimed_background_K[2] > 1.5
    assert weights.claimed_background_K[0] == weights.claimed_background_K[1] < 1


def test_hallucinated_claims_do_not_change_the_weight_of_objects() -> None:
    calm = make_loss([2.0, 1.0], [4, 4], [0.0, 0.0], [4, 4])
    wild = make_loss([2.0, 1.0], [4, 4], [0.0, 9.0], [4, 10])
    before, after = (class_weights([loss], 2, prior_count=5.0, weight_max=3.0) for loss in (calm, wild))
    assert before.positive_K.tolist() == after.positive_K.tolist()
    assert after.claimed_background_K[1] > 1 > after.claimed_background_K[0]


@pytest.mark.parametrize("losses", [[], [make_loss([0.0, 0.0], [3, 1], [0.0, 0.0], [1, 0])]])
def test_without_an_error_all_weights_are_one(losses: list[RealizedLoss]) -> None:
    weights = class_weights(losses, 2, prior_count=20.0, weight_max=3.0)
    assert (weights.positive_K.tolist(), weights.claimed_background_K.tolist()) == ([1.0, 1.0], [1.0, 1.0])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(1, 10))
def test_bounded_weights_keep_their_mean_and_order(values: list[float], weight_max: float) -> None:
    bounded = bound(np.array(values), weight_max)
    assert bounded.mean() == pytest.approx(1)
    assert bounded.min() >= 1 / weight_max - 1e-9
    assert bounded.max() <= weight_max + 1e-9
    assert (np.diff(bounded[np.argsort(values)]) >= -1e-12).all()


def test_weights_inside_the_bounds_are_only_scaled() -> None:
    assert bound(np.array([1.0, 2.0, 3.0]), 3.0) == pytest.approx([0.5, 1.0, 1.5])
