"""Labels that detections contradict: written-out cases."""

import numpy as np

from tasks.evaluation.label_errors import LabelError, find_label_errors

HERE, MOVED, THERE = [0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [50.0, 50.0, 60.0, 60.0]  # HERE, MOVED: IoU 1/3


def errors(
    found: list[tuple[list[float], float, int]], labels: list[tuple[list[float], int]], stability: float = 1.0
) -> list[tuple[str, float, int]]:
    listed: list[LabelError] = find_label_errors(
        np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float64),
        np.array([class_id for _, _, class_id in found], dtype=np.int64),
        np.full(len(found), stability),
        np.array([box for box, _ in labels], dtype=np.float64).reshape(-1, 4),
        np.array([class_id for _, class_id in labels], dtype=np.int64),
    )
    return [(one.kind, round(one.strength, 4), one.class_id) for one in listed if one.strength > 0]


def test_a_detection_without_any_label_there_is_a_missing_one() -> None:
    assert errors([(HERE, 0.9, 0), (THERE, 0.8, 1)], [(HERE, 0)]) == [("missing", 0.8, 1)]
    assert errors([(HERE, 0.9, 0)], []) == [("missing", 0.9, 0)]


def test_a_second_look_at_the_same_object_and_a_box_that_moves_count_less() -> None:
    assert errors([(HERE, 0.9, 0), (MOVED, 0.6, 0)], []) == [("missing", 0.9, 0), ("missing", 0.4, 0)]
    assert errors([(HERE, 0.9, 0)], [], stability=0.5) == [("missing", 0.45, 0)]


def test_the_best_fit_of_its_class_says_how_badly_a_label_is_placed() -> None:
    assert errors([(MOVED, 0.9, 0)], [(HERE, 0)]) == [("misplaced", round(0.9 * 2 / 3, 4), 0)]
    assert errors([(HERE, 0.9, 0)], [(HERE, 0)]) == []


def test_a_neighbor_of_the_same_class_does_not_displace_a_label() -> None:
    """The detection fits the second label exactly, so it is not about the first, which nobody saw."""
    assert errors([(MOVED, 0.9, 0)], [(HERE, 0), (MOVED, 0)]) == []


def test_another_class_in_the_same_place_is_a_swap_as_far_as_its_own_is_not_seen() -> None:
    assert errors([(HERE, 0.9, 1)], [(HERE, 0)]) == [("swapped", 0.9, 1)]
    assert errors([(HERE, 0.9, 1), (HERE, 0.4, 0)], [(HERE, 0)]) == [("swapped", 0.5, 1)]
    assert errors([(HERE, 0.3, 1), (HERE, 0.8, 0)], [(HERE, 0)]) == []


def test_a_neighbor_of_another_class_explains_its_own_label_first() -> None:
    assert errors([(MOVED, 0.9, 1), (HERE, 0.8, 0)], [(HERE, 0), (MOVED, 1)]) == []


def test_labels_that_nothing_contradicts_are_no_errors() -> None:
    assert errors([], [(HERE, 0), (THERE, 1)]) == []
    assert errors([], []) == []
