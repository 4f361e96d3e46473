"""Evaluate one model by further protocols beside COCO's (``evaluate.protocols``, docs/method.md#protocols)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tasks.evaluation.confusion import confusion
from tasks.evaluation.miss_rate import log_average_miss_rates
from tasks.evaluation.operating_point import ALL_CLASSES, ErrorCosts, operating_points
from tasks.evaluation.slices import ImageTraits, slice_metrics
from tasks.evaluation.voc_map import voc_map
from tasks.params.stages import EvaluateParams

_ERRORS_WITH_EXAMPLES = 3


def protocol_metrics(
    truth: pa.Table,
    predictions: pa.Table,
    classes: Sequence[str],
    params: EvaluateParams,
    traits: Mapping[str, ImageTraits],
) -> dict[str, Any]:
    """Evaluate by each of ``evaluate.protocols``.

    Args:
        truth: schemas.ANNOTATED.
        predictions: of one model, rows with image_id, boxes_xyxy, scores, class_ids.
        classes: names by class index.
        params: section evaluate.
        traits: by image id; only ``slices`` needs them.

    Returns:
        Metrics by protocol. ``confusion`` holds ``score_threshold``, ``matrix``, (K + 1, K + 1), and ``examples``, a
        list of ``ConfusionExample``.
    """
    found: dict[str, Any] = {}
    points: dict[str, Any] = {}
    if {"operating_point", "confusion"} & set(params.protocols):
        points = _operating_points(truth, predictions, classes, params)
    for name in params.protocols:
        if name == "voc07":
            found[name] = voc_map(truth, predictions, classes, eleven_points=True)
        elif name == "voc12":
            found[name] = voc_map(truth, predictions, classes, eleven_points=False)
        elif name == "miss_rate":
            found[name] = log_average_miss_rates(truth, predictions, classes)
        elif name == "operating_point":
            found[name] = points
        elif name == "slices":
            found[name] = slice_metrics(truth, predictions, classes, traits)
        else:
            found[name] = _confusion(truth, predictions, len(classes), points)
    return found


def _operating_points(
    truth: pa.Table, predictions: pa.Table, classes: Sequence[str], params: EvaluateParams
) -> dict[str, Any]:
    costs = ErrorCosts(params.false_alarm_cost, params.miss_cost)
    points = operating_points(truth, predictions, classes, wanted_precision=params.wanted_precision, costs=costs)
    asked = {name: getattr(params, name) for name in ("wanted_precision", "false_alarm_cost", "miss_cost")}
    return {**asked, "by_class": points}


def _confusion(truth: pa.Table, predictions: pa.Table, num_classes: int, points: Mapping[str, Any]) -> dict[str, Any]:
    """Count at the threshold at which errors of all classes cost least; 1 where using no detection does."""
    threshold = points["by_class"][ALL_CLASSES]["least_cost"]["score_threshold"]
    used = 1.0 if threshold is None else threshold
    found = confusion(truth, predictions, num_classes, score_threshold=used, num_errors=_ERRORS_WITH_EXAMPLES)
    return {"score_threshold": used, "matrix": found.matrix.tolist(), "examples": list(found.examples)}
