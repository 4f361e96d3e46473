"""Log-average miss rate on curves known by hand."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.evaluation.miss_rate import REFERENCE_FPPI, log_average_miss_rates
from tests.tasks.evaluation.test_coco_map import BOX, FAR, prediction_table, truth_table

NOTHING: tuple[list[float], list[float], list[int]] = ([], [], [])


def miss_rate(truth: pa.Table, predictions: pa.Table) -> float | None:
    return log_average_miss_rates(truth, predictions, ["a"])["per_class"]["a"]


def test_the_reference_points_are_those_of_the_paper() -> None:
    expected = [0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0]
    assert pytest.approx(expected, abs=1e-4) == REFERENCE_FPPI


def test_all_found_without_a_false_alarm_is_zero() -> None:
    assert miss_rate(truth_table((BOX, [0])), prediction_table((BOX, [0.9], [0]))) == pytest.approx(0, abs=1e-6)


def test_nothing_found_is_a_hundred() -> None:
    assert miss_rate(truth_table((BOX, [0])), prediction_table(NOTHING)) == pytest.approx(100)


def test_the_curve_is_read_off_at_each_reference() -> None:
    """Ten images, two objects: one is found first, then a false alarm (0.1 an image), then the second."""
    truth = truth_table((BOX, [0]), (BOX, [0]), *[([], [])] * 8)
    found = prediction_table((BOX, [0.9], [0]), (BOX, [0.5], [0]), (FAR, [0.7], [0]), *[NOTHING] * 7)
    # Below 0.1 false alarms an image half is missed (4 references); from 0.1 on nothing is (5), counted as 1e-10.
    expected = 100 * np.exp((4 * np.log(0.5) + 5 * np.log(1e-10)) / 9)
    assert miss_rate(truth, found) == pytest.approx(expected)


def test_false_alarms_before_the_first_hit_miss_everything_up_to_there() -> None:
    """Two images: a false alarm first (0.5 an image), then one of two objects."""
    truth = truth_table((BOX, [0]), (BOX, [0]))
    found = prediction_table((FAR + BOX, [0.9, 0.8], [0, 0]), NOTHING)
    # References below 0.5: everything missed (7); 0.5623 and 1: half
    assert miss_rate(truth, found) == pytest.approx(100 * np.exp(2 * np.log(0.5) / 9))


def test_a_class_without_an_object_has_none() -> None:
    found = log_average_miss_rates(truth_table((BOX, [0])), prediction_table((BOX, [0.9], [0])), ["a", "b"])
    assert found["per_class"]["b"] is None
    assert found["mean"] == found["per_class"]["a"]
