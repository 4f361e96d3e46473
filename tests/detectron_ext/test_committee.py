"""Disagreement of two detectors: by hand, and by its properties."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.committee import class_disagreement, disagreement
from detectron_ext.inference import Detections


def detections(boxes: Any, scores: Any = None, class_probs: Any = None) -> Detections:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.full(len(boxes), 0.5) if scores is None else scores
    class_probs = np.tile([0.5, 0.2, 0.3], (len(boxes), 1)) if class_probs is None else class_probs
    probs = np.array(class_probs, dtype=np.float32)
    return Detections(
        boxes,
        np.array(scores, dtype=np.float32),
        probs[:, :-1].argmax(axis=1),
        probs,
        np.zeros(1, dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros((0, 0), dtype=np.float32),
    )


@st.composite
def members(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    corners = rng.integers(0, 60, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 40, (count, 2))])
    probs = rng.dirichlet(np.ones(4), count)
    return detections(boxes, probs[:, :-1].max(axis=1), probs)


@given(members())
def test_identical_members_do_not_disagree_at_all(member: Detections) -> None:
    """Also where boxes lie on one another, so that several assignments are equally good."""
    assert disagreement(member, member) == (0.0, 0.0)


def test_two_objects_in_one_place_are_told_apart_by_their_classes() -> None:
    place, probs = [[0, 0, 9, 9]] * 2, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    assert disagreement(detections(place, class_probs=probs), detections(place, class_probs=probs[::-1])) == (0.0, 0.0)


@given(members(), members())
def test_disagreement_is_symmetric_and_bounded_by_the_scores(first: Detections, second: Detections) -> None:
    there, back = disagreement(first, second), disagreement(second, first)
    assert there == pytest.approx(back)
    bound = float(first.scores.sum() + second.scores.sum()) + 1e-6
    assert 0 <= there.boxes <= bound
    assert 0 <= there.classes <= bound


def test_pairs_and_unmatched_boxes_written_out() -> None:
    first = detections([[0, 0, 10, 10], [50, 50, 60, 60]], [0.8, 0.3], [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4]])
    second = detections([[0, 0, 10, 5], [20, 20, 30, 30]], [0.6, 0.4], [[0.2, 0.6, 0.2], [0.4, 0.2, 0.4]])
    found = disagreement(first, second)
    symmetric_kl = 0.6 * math.log(4) + 0.5 * math.log(6) + 0.1 * math.log(2)
    assert found.boxes == pytest.approx(0.8 * (1 - 0.5) + 0.3 + 0.4)
    assert found.classes == pytest.approx(0.8 * (1 - math.exp(-symmetric_kl)) + 0.3 + 0.4, rel=1e-5)


def test_boxes_that_hardly_touch_are_two_objects() -> None:
    first, second = detections([[0, 0, 10, 10]]), detections([[9, 0, 19, 10]])
    assert disagreement(first, second) == (1.0, 1.0)


def test_assignment_takes_the_pairs_that_overlap_most_in_all() -> None:
    """Greedily, the first box would take the second member's first, and its neighbor would be left alone."""
    first = detections([[0, 0, 10, 10], [0, 4, 10, 14]])
    second = detections([[0, 2, 10, 12], [0, 0, 10, 6]])
    pairs = (6 / 10, 8 / 12)  # first with second's second, second with second's first
    assert disagreement(first, second).boxes == pytest.approx(0.5 * sum(1 - iou for iou in pairs))


def test_class_disagreement_grows_with_the_distance_and_is_0_for_equal_posteriors() -> None:
    p = np.array([[0.7, 0.2, 0.1]] * 3)
    q = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    none, some, much = class_disagreement(p, q)
    assert none == 0
    assert 0 < some < much < 1
