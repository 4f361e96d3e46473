"""How far two models report the same objects, against counted cases."""

from typing import Any

import pyarrow as pa
import pytest

from tasks.data.schemas import PREDICTIONS, with_class_names
from tasks.evaluation.model_agreement import model_agreement

HERE, THERE = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def predictions(
    *rows: tuple[str, list[list[float]], list[float], list[int]], classes: tuple[str, ...] = ("a", "b")
) -> Any:
    entries = [
        {
            "model": "teacher",
            "image_id": image,
            "boxes_xyxy": [corner for box in boxes for corner in box],
            "scores": scores,
            "class_ids": ids,
        }
        for image, boxes, scores, ids in rows
    ]
    return pa.Table.from_pylist(entries, with_class_names(PREDICTIONS, classes))


def test_the_same_objects_agree_whatever_the_order_of_boxes_and_classes() -> None:
    first = predictions(("1", [HERE, THERE], [0.9, 0.8], [0, 1]))
    second = predictions(("1", [THERE, HERE], [0.6, 0.7], [0, 1]), classes=("b", "a"))
    assert model_agreement(first, second) == 1.0


def test_the_f1_is_that_of_the_counted_objects() -> None:
    """Three boxes and two boxes; one pair of the same class, one of another: 2 * 1 / 5. Low scores do not count."""
    first = predictions(("1", [HERE, THERE], [0.9, 0.8], [0, 1]), ("2", [HERE], [0.9], [0]))
    second = predictions(("1", [HERE, THERE], [0.9, 0.8], [0, 0]), ("2", [HERE], [0.4], [0]), ("3", [HERE], [1.0], [0]))
    assert model_agreement(first, second) == pytest.approx(0.4)


def test_without_any_object_there_is_no_agreement_to_measure() -> None:
    nothing = predictions(("1", [], [], []))
    assert model_agreement(nothing, nothing) is None
    assert model_agreement(predictions(("1", [HERE], [0.9], [0])), nothing) == 0.0
