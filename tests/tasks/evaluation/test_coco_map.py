"""mAP on cases known by hand; empty images, empty predictions, absent classes."""

from typing import Any

import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.coco_map import coco_map

CLASSES = ["a", "b", "never"]


def truth_table(*images: tuple[list[float], list[int]]) -> pa.Table:
    rows = [
        {
            "image_id": f"{n:016x}", "uri": "", "width_px": 100, "height_px": 100,
            "boxes_xyxy": boxes, "class_ids": classes, "batch": -1,
        }
        for n, (boxes, classes) in enumerate(images)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, ANNOTATED)


def prediction_table(*images: tuple[list[float], list[float], list[int]]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"model": "teacher", "image_id": f"{n:016x}", "boxes_xyxy": boxes, "scores": scores, "class_ids": labels}
        for n, (boxes, scores, labels) in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, PREDICTIONS)


BOX, FAR = [10.0, 10, 50, 50], [60.0, 60, 90, 90]
TRUTH = truth_table((BOX, [0]), (BOX + FAR, [0, 1]), ([], []))


def test_perfect_predictions_score_a_hundred() -> None:
    metrics = coco_map(
        TRUTH, prediction_table((BOX, [0.9], [0]), (BOX + FAR, [0.8, 0.7], [0, 1]), ([], [], [])), CLASSES
    )
    assert metrics == {
        "mAP": 100.0, "AP50": 100.0, "AP75": 100.0, "AP_small": 100.0, "AP_medium": 100.0, "AP_large": None,
        "per_class": {"a": 100.0, "b": 100.0, "never": None},
    }  # fmt: skip


def test_no_predictions_score_zero_and_absent_classes_stay_unknown() -> None:
    metrics = coco_map(TRUTH, prediction_table(([], [], []), ([], [], []), ([], [], [])), CLASSES)
    assert metrics["mAP"] == 0
    assert metrics["per_class"] == {"a": 0.0, "b": 0.0, "never": None}


def test_a_false_alarm_on_an_empty_image_costs_precision() -> None:
    quiet = coco_map(TRUTH, prediction_table((BOX, [0.5], [0]), (BOX, [0.5], [0]), ([], [], [])), CLASSES)
    alarmed = coco_map(TRUTH, prediction_table((BOX, [0.5], [0]), (BOX, [0.5], [0]), (BOX, [0.9], [0])), CLASSES)
    assert quiet["per_class"]["a"] == 100.0
    assert alarmed["per_class"]["a"] is not None
    assert alarmed["per_class"]["a"] < 70


def test_a_shifted_box_passes_at_50_and_fails_at_75() -> None:
    shifted = [20.0, 10, 60, 50]  # IoU 30 / 50 = 0.6
    metrics = coco_map(truth_table((BOX, [0])), prediction_table((shifted, [0.9], [0])), CLASSES)
    assert metrics["AP50"] == 100.0
    assert metrics["AP75"] == 0.0
    assert metrics["mAP"] == pytest.approx(30.0)  # IoU thresholds .50, .55 and .60


def test_a_validation_set_without_boxes_is_no_error() -> None:
    metrics = coco_map(truth_table(([], [])), prediction_table((BOX, [0.9], [0])), CLASSES)
    assert metrics["mAP"] == 0.0
    assert set(metrics["per_class"].values()) == {None}


def test_detections_in_a_crowd_region_of_their_class_count_neither_way() -> None:
    crowd = [50.0, 0, 100, 100]
    truth = truth_table((BOX + crowd, [0, 0]))
    rows = truth.to_pylist()
    with_crowd = pa.Table.from_pylist([rows[0] | {"is_crowd": [False, True]}], ANNOTATED)
    inside = [60.0, 10, 70, 20, 80, 40, 95, 60]
    found = prediction_table((inside + BOX, [0.9, 0.8, 0.5], [0, 0, 0]))
    assert coco_map(with_crowd, found, CLASSES)["per_class"]["a"] == 100.0
    assert coco_map(truth, found, CLASSES)["mAP"] < 50
    other_class = prediction_table((inside + BOX, [0.9, 0.8, 0.5], [1, 1, 0]))
    both = pa.Table.from_pylist(
        [*with_crowd.to_pylist(), {**rows[0], "image_id": "1" * 16, "class_ids": [1, 1]}], ANNOTATED
    )
    assert coco_map(both, other_class, CLASSES)["per_class"]["b"] == 0.0


@pytest.mark.parametrize(("num_objects", "limit"), [(100, 100), (101, 202), (150, 300)])
def test_more_than_a_hundred_objects_of_a_class_raise_the_limit(num_objects: int, limit: int) -> None:
    """Every object is found, below so many better scored false alarms that the limit decides what is counted."""

    def row(number: int, shift_px: float = 0.0) -> list[float]:
        x, y = 40.0 * (number % 20), 40.0 * (number // 20) + shift_px
        return [x, y, x + 10, y + 10]

    boxes = [corner for number in range(num_objects) for corner in row(number)]
    truth = truth_table((boxes, [0] * num_objects))
    perfect = prediction_table((boxes, [0.5] * num_objects, [0] * num_objects))
    assert coco_map(truth, perfect, CLASSES)["AP50"] == pytest.approx(100.0)
    num_alarms = limit - num_objects // 2
    alarms = [corner for number in range(num_alarms) for corner in row(number, 20.0)]
    found = prediction_table(
        ([*alarms, *boxes], [0.9] * num_alarms + [0.5] * num_objects, [0] * (num_alarms + num_objects))
    )
    both = coco_map(truth, found, CLASSES)
    assert both == coco_map(truth, found, CLASSES, max_detections=limit)
    assert both["AP50"] < coco_map(truth, found, CLASSES, max_detections=10_000)["AP50"]
