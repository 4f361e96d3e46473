"""Realised loss on cases small enough to count by hand."""

import math

import numpy as np
import pytest

from detectron_ext.realised_loss import MISS_PROBABILITY, class_difficulty, match, realised_loss

GAMMA = 1.5


def fl(p: float) -> float:
    return -((1 - p) ** GAMMA) * math.log(p)


BOX = [10.0, 10, 20, 20]
FAR = [50.0, 50, 60, 60]


def loss_of(boxes, posteriors, truth, classes):  # type: ignore[no-untyped-def]
    posteriors = np.array(posteriors, dtype=float).reshape(-1, 3)
    return realised_loss(
        np.array(boxes, dtype=float).reshape(-1, 4),
        posteriors[:, :-1].max(axis=1, initial=0),
        posteriors,
        np.array(truth, dtype=float).reshape(-1, 4),
        np.array(classes, dtype=int),
        GAMMA,
    )


def test_a_hit_counts_the_true_class() -> None:
    loss = loss_of([BOX], [[0.7, 0.2, 0.1]], [BOX], [0])
    assert loss.total_K.tolist() == pytest.approx([fl(0.7), 0])


def test_a_hit_under_the_wrong_name_counts_the_true_class_too() -> None:
    loss = loss_of([BOX], [[0.7, 0.2, 0.1]], [BOX], [1])
    assert loss.total_K.tolist() == pytest.approx([0, fl(0.2)])


def test_a_false_positive_counts_for_the_class_it_claims() -> None:
    loss = loss_of([BOX], [[0.7, 0.2, 0.1]], [], [])
    assert loss.total_K.tolist() == pytest.approx([fl(0.1), 0])


def test_a_miss_counts_for_the_class_that_was_there() -> None:
    loss = loss_of([], [], [BOX], [1])
    assert loss.total_K.tolist() == pytest.approx([0, fl(MISS_PROBABILITY)])
    assert loss.terms_K.tolist() == [0, 1]


def test_an_empty_image_without_detections_costs_nothing() -> None:
    assert loss_of([], [], [], []).weighted(np.ones(2)) == 0.0


def test_one_true_box_is_matched_once_by_the_surest_detection() -> None:
    matched = match(np.array([BOX, BOX, FAR]), np.array([0.5, 0.9, 0.8]), np.array([BOX]))
    assert matched.tolist() == [-1, 0, -1]


def test_difficulty_is_the_mean_per_term() -> None:
    losses = [loss_of([BOX], [[0.7, 0.2, 0.1]], [BOX], [0]), loss_of([], [], [BOX], [0])]
    assert class_difficulty(losses)[0] == pytest.approx((fl(0.7) + fl(MISS_PROBABILITY)) / 2)
    assert math.isnan(class_difficulty(losses)[1])
