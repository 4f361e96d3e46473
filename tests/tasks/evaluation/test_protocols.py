"""Each protocol that is asked for is there, with the figures of its own function."""

from pathlib import Path

import pytest

from tasks.evaluation.confusion import confusion
from tasks.evaluation.miss_rate import log_average_miss_rates
from tasks.evaluation.operating_point import ErrorCosts, operating_points
from tasks.evaluation.protocols import protocol_metrics
from tasks.evaluation.slices import ImageTraits, slice_metrics
from tasks.evaluation.voc_map import voc_map
from tasks.params import load_params
from tests.tasks.evaluation.test_coco_map import BOX, FAR, prediction_table, truth_table

EVALUATE = load_params(Path(__file__).parents[3] / "params.yaml").evaluate
TRUTH = truth_table((BOX, [0]), (BOX + FAR, [0, 1]), ([], []))
FOUND = prediction_table((BOX, [0.9], [0]), (BOX + FAR, [0.8, 0.4], [1, 1]), (FAR, [0.3], [0]))
CLASSES = ["a", "b"]
TRAITS = {f"{n:016x}": ImageTraits(100.0 * n, n * 6) for n in range(3)}


def test_all_protocols() -> None:
    names = ["voc07", "voc12", "miss_rate", "operating_point", "confusion", "slices"]
    found = protocol_metrics(TRUTH, FOUND, CLASSES, EVALUATE.model_copy(update={"protocols": names}), TRAITS)
    assert list(found) == names
    assert found["voc07"] == voc_map(TRUTH, FOUND, CLASSES, eleven_points=True)
    assert found["slices"] == slice_metrics(TRUTH, FOUND, CLASSES, TRAITS)
    assert found["voc12"] == voc_map(TRUTH, FOUND, CLASSES, eleven_points=False)
    assert found["miss_rate"] == log_average_miss_rates(TRUTH, FOUND, CLASSES)
    costs = ErrorCosts(EVALUATE.false_alarm_cost, EVALUATE.miss_cost)
    points = operating_points(TRUTH, FOUND, CLASSES, wanted_precision=EVALUATE.wanted_precision, costs=costs)
    assert found["operating_point"]["by_class"] == points
    threshold = points["all classes"]["least_cost"]["score_threshold"]
    assert found["confusion"]["score_threshold"] == threshold
    counted = confusion(TRUTH, FOUND, 2, score_threshold=threshold, num_errors=3)
    assert found["confusion"]["matrix"] == counted.matrix.tolist()
    assert found["confusion"]["examples"] == counted.examples


@pytest.mark.parametrize("name", ["voc12", "confusion", "operating_point"])
def test_one_protocol_alone(name: str) -> None:
    params = EVALUATE.model_copy(update={"protocols": [name]})
    assert list(protocol_metrics(TRUTH, FOUND, CLASSES, params, {})) == [name]


def test_where_no_detection_is_worth_using_the_matrix_counts_misses_alone() -> None:
    params = EVALUATE.model_copy(update={"protocols": ["confusion"], "miss_cost": 0.0})
    found = protocol_metrics(TRUTH, FOUND, CLASSES, params, {})["confusion"]
    assert (found["score_threshold"], found["matrix"]) == (1.0, [[0, 0, 2], [0, 0, 1], [0, 0, 0]])
    assert {example["score"] for example in found["examples"]} == {None}
