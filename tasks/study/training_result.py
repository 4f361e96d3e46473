"""What one training came to on the validation images, and the mAP that a point of a study makes of it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import pyarrow.compute as pc

from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.paired_bootstrap import bootstrap_map
from tasks.storage import files

BOOTSTRAP_SAMPLES = 300
_BOOTSTRAP_SEED = 0  # the same draws of the validation images for all arms, seeds and trainings
_DIGITS = 2
MODELS = ("teacher", "student")
Training = Mapping[str, Mapping[str, Any]]
"""By model: ``map``, ``ap50`` and ``ap_by_class`` (None: no object of the class) in percent, and ``bootstrap_map``, mAP
on resamples of the validation images."""


def measure_training(workspace: Workspace, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the evaluation in ``derived/``, and resample its validation images."""
    metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    truth = files.read_table(workspace.derived("assemble") / "val.parquet", ANNOTATED)
    predictions = files.read_table(workspace.derived("evaluate") / "predictions.parquet", PREDICTIONS)
    found = {}
    for model in MODELS:
        own = predictions.filter(pc.equal(predictions["model"], model))
        draws = bootstrap_map(truth, own, classes=classes, samples=BOOTSTRAP_SAMPLES, seed=_BOOTSTRAP_SEED)
        found[model] = {
            "map": metrics[model]["mAP"],
            "ap50": metrics[model]["AP50"],
            "ap_by_class": metrics[model]["per_class"],
            "bootstrap_map": [round(value, _DIGITS) for value in draws.tolist()],
        }
    return found


def point_map(trainings: Sequence[Training], model: Literal["best", "teacher", "student"]) -> float:
    """Return the mAP of a point in percent: that of the model, or of the better one, mean over trainings."""
    return fmean(max(training[name]["map"] for name in _models(model)) for training in trainings)


def point_bootstrap(trainings: Sequence[Training], model: Literal["best", "teacher", "student"]) -> list[float]:
    """Return ``point_map`` on each resample of the validation images, in the order of the resamples."""
    by_training = [
        [max(values) for values in zip(*(training[name]["bootstrap_map"] for name in _models(model)), strict=True)]
        for training in trainings
    ]
    return [fmean(values) for values in zip(*by_training, strict=True)]


def _models(model: str) -> Sequence[str]:
    return MODELS if model == "best" else (model,)
