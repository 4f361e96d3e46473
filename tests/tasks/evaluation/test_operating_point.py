"""Operating points counted by hand, and confusion matrices."""

import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED
from tasks.evaluation.confusion import confusion_matrix
from tasks.evaluation.operating_point import ErrorCosts, operating_points
from tests.tasks.evaluation.test_coco_map import BOX, FAR, prediction_table, truth_table

EVEN = ErrorCosts(1.0, 1.0)
FAR2 = [200.0, 200, 240, 240]
# Class 0: hit 0.9, false 0.8, hit 0.7, false 0.6 twice; a third object is never found. Class 1: nothing.
TRUTH = truth_table((BOX, [0]), (BOX, [0]), (BOX, [0]))
FOUND = prediction_table(
    (BOX + FAR, [0.9, 0.8], [0, 0]), (BOX + FAR, [0.7, 0.6], [0, 0]), (FAR2, [0.6], [0]),
)  # fmt: skip


def test_the_lowest_threshold_with_the_wanted_precision() -> None:
    point = operating_points(TRUTH, FOUND, ["a"], wanted_precision=0.65, costs=EVEN)["a"]["at_precision"]
    assert point == pytest.approx(
        {"score_threshold": 0.7, "precision": 2 / 3, "recall": 2 / 3, "cost_per_image": 2 / 3}
    )
    point = operating_points(TRUTH, FOUND, ["a"], wanted_precision=1.0, costs=EVEN)["a"]["at_precision"]
    assert point == pytest.approx({"score_threshold": 0.9, "precision": 1.0, "recall": 1 / 3, "cost_per_image": 2 / 3})


def test_equal_scores_are_used_together() -> None:
    point = operating_points(TRUTH, FOUND, ["a"], wanted_precision=0.4, costs=EVEN)["a"]["at_precision"]
    assert point["score_threshold"] == pytest.approx(0.6)
    assert point["precision"] == pytest.approx(2 / 5)


def test_a_precision_that_no_threshold_reaches() -> None:
    only_false = prediction_table((FAR, [0.9], [0]), ([], [], []), ([], [], []))
    point = operating_points(TRUTH, only_false, ["a"], wanted_precision=0.5, costs=EVEN)["a"]["at_precision"]
    assert point == {"score_threshold": None, "precision": None, "recall": 0.0, "cost_per_image": 1.0}


@pytest.mark.parametrize(
    ("costs", "threshold", "cost"),
    [
        (ErrorCosts(1.0, 1.0), 0.9, 2.0),  # 3 misses, 2, 3 with a false alarm, 2 at 0.7: the highest of equals
        (ErrorCosts(1.0, 5.0), 0.7, 6.0),  # a miss and a false alarm
        (ErrorCosts(1.0, 0.0), None, 0.0),  # misses cost nothing: use no detection
    ],
)
def test_the_threshold_at_which_errors_cost_least(costs: ErrorCosts, threshold: float | None, cost: float) -> None:
    point = operating_points(TRUTH, FOUND, ["a"], wanted_precision=0.9, costs=costs)["a"]["least_cost"]
    assert point["score_threshold"] == (None if threshold is None else pytest.approx(threshold))
    assert point["cost_per_image"] == pytest.approx(cost / 3)


def test_all_classes_share_one_threshold() -> None:
    truth = truth_table((BOX + FAR, [0, 1]))
    found = prediction_table((BOX + FAR, [0.9, 0.4], [0, 1]))
    points = operating_points(truth, found, ["a", "b"], wanted_precision=0.9, costs=EVEN)
    assert points["all classes"]["at_precision"]["score_threshold"] == pytest.approx(0.4)
    assert points["all classes"]["at_precision"]["recall"] == 1.0


def test_the_confusion_matrix_counts_pairs_misses_and_false_alarms() -> None:
    truth = truth_table((BOX + FAR, [0, 1]), (BOX, [1]), ([], []))
    found = prediction_table((BOX, [0.9], [1]), (BOX + FAR, [0.8, 0.3], [1, 0]), (FAR2, [0.7], [0]))
    # a taken for b; b missed; b right; a detection of nothing at 0.7; the one at 0.3 is below the threshold
    assert confusion_matrix(truth, found, 2, score_threshold=0.5).tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert confusion_matrix(truth, found.slice(0, 0), 2, score_threshold=0.5).tolist() == [
        [0, 0, 1], [0, 0, 2], [0, 0, 0],
    ]  # fmt: skip


def test_crowds_are_neither_missed_nor_false() -> None:
    row = {"image_id": "0" * 16, "uri": "", "width_px": 100, "height_px": 100, "batch": -1}
    row |= {"boxes_xyxy": BOX, "class_ids": [0], "is_crowd": [True]}
    truth = pa.Table.from_pylist([row], ANNOTATED)
    inside = prediction_table(([20.0, 20, 30, 30], [0.9], [0]))
    assert confusion_matrix(truth, inside, 1, score_threshold=0.5).tolist() == [[0, 0], [0, 0]]
