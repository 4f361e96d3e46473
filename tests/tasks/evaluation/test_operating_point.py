"""Operating points counted by hand, and confusion matrices."""

import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED
from tasks.evaluation.confusion import EXAMPLES_PER_ERROR, confusion
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
    assert confusion(truth, found, 2, score_threshold=0.5).matrix.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert confusion(truth, found.slice(0, 0), 2, score_threshold=0.5).matrix.tolist() == [
        [0, 0, 1], [0, 0, 2], [0, 0, 0],
    ]  # fmt: skip


def test_crowds_are_neither_missed_nor_false() -> None:
    row = {"image_id": "0" * 16, "uri": "", "width_px": 100, "height_px": 100, "batch": -1}
    row |= {"boxes_xyxy": BOX, "class_ids": [0], "is_crowd": [True]}
    truth = pa.Table.from_pylist([row], ANNOTATED)
    inside = prediction_table(([20.0, 20, 30, 30], [0.9], [0]))
    assert confusion(truth, inside, 1, score_threshold=0.5).matrix.tolist() == [[0, 0], [0, 0]]


def test_examples_show_the_most_frequent_errors_by_the_surest_detections_of_different_images() -> None:
    images = [(BOX, [0])] * 3 + [(BOX + FAR, [0, 1])] * 2
    detections = [
        (BOX + BOX, [0.6, 0.55], [1, 1]),  # taken for class 1; the second look is a detection of nothing
        (BOX, [0.9], [1]),
        (BOX, [0.4], [1]),  # below the threshold: missed
        (BOX, [0.8], [0]),  # right; the far object is missed
        ([], [], []),  # both are missed
    ]
    truth, found = truth_table(*images), prediction_table(*detections)
    all_errors = confusion(truth, found, 2, score_threshold=0.5, num_errors=9)
    shown = [(e["true_class"], e["predicted_class"], int(e["image_id"], 16), e["score"]) for e in all_errors.examples]
    assert all_errors.matrix.tolist() == [[1, 2, 2], [0, 0, 2], [0, 1, 0]]
    assert shown == [
        (0, 1, 1, 0.9), (0, 1, 0, 0.6),
        (2, 1, 0, 0.55),
        (0, 2, 2, None), (0, 2, 4, None),
        (1, 2, 3, None), (1, 2, 4, None),
    ]  # fmt: skip
    assert all_errors.examples[0]["box_xyxy"] == BOX
    assert all_errors.examples[5]["box_xyxy"] == FAR
    assert confusion(truth, found, 2, score_threshold=0.5, num_errors=1).examples == all_errors.examples[:5]
    assert confusion(truth, found, 2, score_threshold=0.5).examples == []


def test_one_error_is_shown_by_a_few_images_of_missed_objects_by_the_largest() -> None:
    boxes = [[0.0, 0, 10 + n, 10] for n in range(EXAMPLES_PER_ERROR + 2)]
    found = confusion(
        truth_table(*((box, [0]) for box in boxes)), prediction_table(*(([], [], []) for _ in boxes)), 1,
        score_threshold=0.5, num_errors=3,
    )  # fmt: skip
    assert [example["box_xyxy"] for example in found.examples] == boxes[: -EXAMPLES_PER_ERROR - 1 : -1]
