"""Realised loss on cases small enough to count by hand."""

import math

import numpy as np
import pytest

from detectron_ext.detection_loss import MISS_PROBABILITY, counts_as_detection, match_detections, realized_loss

GAMMA = 1.5


def focal_loss(p: float) -> float:
    return -((1 - p) ** GAMMA) * math.log(p)


BOX = [10.0, 10, 20, 20]
FAR = [50.0, 50, 60, 60]


def compute_loss(boxes, posteriors, truth, classes):  # type: ignore[no-untyped-def]
    posteriors = np.array(posteriors, dtype=float).reshape(-1, 3)
    return realized_loss(
        np.array(boxes, dtype=float).reshape(-1, 4),
        posteriors[:, :-1].max(axis=1, initial=0),
        posteriors,
        np.array(truth, dtype=float).reshape(-1, 4),
        np.array(classes, dtype=int),
        GAMMA,
    )


def test_a_hit_counts_the_true_class() -> None:
    loss = compute_loss([BOX], [[0.7, 0.2, 0.1]], [BOX], [0])
    assert loss.positive_K.tolist() == pytest.approx([focal_loss(0.7), 0])
    assert loss.claimed_background_K.tolist() == [0, 0]
    assert (loss.num_boxes_K.tolist(), loss.num_claims_K.tolist()) == ([1, 0], [1, 0])


def test_a_hit_under_the_wrong_name_counts_the_true_class_too() -> None:
    loss = compute_loss([BOX], [[0.7, 0.2, 0.1]], [BOX], [1])
    assert loss.positive_K.tolist() == pytest.approx([0, focal_loss(0.2)])
    assert (loss.num_boxes_K.tolist(), loss.num_claims_K.tolist()) == ([0, 1], [1, 0])


def test_a_false_positive_counts_for_background_claimed_for_the_class() -> None:
    loss = compute_loss([BOX], [[0.7, 0.2, 0.1]], [], [])
    assert loss.claimed_background_K.tolist() == pytest.approx([focal_loss(0.1), 0])
    assert loss.positive_K.tolist() == [0, 0]
    assert (loss.num_boxes_K.tolist(), loss.num_claims_K.tolist()) == ([0, 0], [1, 0])


def test_a_miss_counts_for_the_class_that_was_there() -> None:
    loss = compute_loss([], [], [BOX], [1])
    assert loss.positive_K.tolist() == pytest.approx([0, focal_loss(MISS_PROBABILITY)])
    assert (loss.num_boxes_K.tolist(), loss.num_claims_K.tolist()) == ([0, 1], [0, 0])


def test_the_loss_of_an_image_is_the_weighted_sum_of_all_its_terms() -> None:
    """A hit of class 0, a miss of class 1, and a claim of class 0 where nothing is."""
    loss = compute_loss([BOX, FAR], [[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], [BOX, [80.0, 80, 90, 90]], [0, 1])
    expected = 2 * focal_loss(0.7) + 3 * focal_loss(MISS_PROBABILITY) + 5 * focal_loss(0.4)
    assert loss.weighted(np.array([2.0, 3.0]), np.array([5.0, 7.0])) == pytest.approx(expected)


def test_an_empty_image_without_detections_costs_nothing() -> None:
    assert compute_loss([], [], [], []).weighted(np.ones(2), np.ones(2)) == 0.0


def test_one_true_box_is_matched_once_by_the_surest_detection() -> None:
    matched = match_detections(np.array([BOX, BOX, FAR]), np.array([0.5, 0.9, 0.8]), np.array([BOX]))
    assert matched.tolist() == [-1, 0, -1]


def test_detections_in_a_crowd_region_of_their_class_do_not_count_unless_they_fit_a_box() -> None:
    crowd = np.array([[0.0, 0, 40, 40]])
    half_inside, less_inside = [30.0, 10, 50, 20], [31.0, 10, 51, 20]
    found = np.array([BOX, BOX, FAR, half_inside, less_inside])
    class_ids = np.array([0, 1, 0, 0, 0])
    none = np.zeros((0, 4))
    counted = counts_as_detection(found, class_ids, none, crowd, np.array([0]))
    assert counted.tolist() == [False, True, True, False, True]
    fitting = counts_as_detection(found, class_ids, np.array([BOX]), crowd, np.array([0]))
    assert fitting.tolist() == [True, True, True, False, True]
    assert counts_as_detection(found, class_ids, none, none, np.zeros(0, dtype=int)).all()
