"""The promotion gate: compare a candidate with the champion on the same validation images.

The candidate must not be worse in mAP, nor in the AP of any class: a gain in the mean does not make up for the loss of
a rare class. A model that cannot be compared is refused. Equation 24 of docs/method.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flows.provenance.snapshot import RoundSnapshot, filter_by_model
from flows.workspace.dvc_cache import MissingDataError
from tasks.data.schemas import PREDICTIONS
from tasks.evaluation.paired_bootstrap import Comparison, compare_models
from tasks.params import Params
from tasks.params.promotion import PromotionParams
from tasks.storage import files

_MODEL = "teacher"


@dataclass(frozen=True)
class GateResult:
    """The decision of the gate and the metrics it is based on."""

    passed: bool
    reason: str
    metrics: dict[str, Any]


def evaluate_gate(candidate: RoundSnapshot, champion: RoundSnapshot | None, params: Params) -> GateResult:
    """Compare a candidate with the champion.

    Args:
        candidate: the round whose teacher may be promoted.
        champion: the round of the current champion; None before the first promotion.
        params: sections ``promotion`` and ``ssl`` (limits of the guard rails), and ``seed``.
    """
    violation = _guardrail_violation(candidate, params)
    if violation is not None:
        return GateResult(False, violation, {})
    if champion is None:
        return GateResult(True, "there is no champion yet", {})
    if candidate.md5("data/val.parquet") != champion.md5("data/val.parquet"):
        return GateResult(False, "the champion was evaluated on another validation set", {})
    try:
        comparison, classes = _compare(candidate, champion, params)
    except MissingDataError as error:
        return GateResult(False, f"the two models cannot be compared: {error}", {})
    return decide(comparison, classes, params.promotion)


def decide(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> GateResult:
    """Decide on a comparison.

    Args:
        comparison: AP and bootstrap differences of candidate and champion, in percent points.
        classes: class names by class index.
        bounds: tolerances and confidence level.
    """
    tolerated = comparison.map_differences >= -bounds.map_tolerance_points
    not_worse_frac = float(tolerated.mean())
    regressed = _regressed_classes(comparison, classes, bounds)
    metrics = {
        **_comparison_metrics(comparison, classes, bounds),
        "not_worse_frac": round(not_worse_frac, 4),
        "regressed_classes": regressed,
    }
    map_text = f"mAP {comparison.candidate_map:.2f} against the champion's {comparison.champion_map:.2f}"
    bootstrap_text = (
        f"at most {bounds.map_tolerance_points:g} points worse in {not_worse_frac:.0%} "
        f"of {bounds.bootstrap_samples} bootstrap samples"
    )
    if not_worse_frac < bounds.confidence_level:
        return GateResult(
            False, f"{map_text}: {bootstrap_text}, expected at least {bounds.confidence_level:.0%}", metrics
        )
    if regressed:
        class_text = ", ".join(
            f"{name} {change['champion']:.1f} to {change['candidate']:.1f}" for name, change in regressed.items()
        )
        return GateResult(False, f"{map_text}, but AP fell for {class_text}", metrics)
    return GateResult(True, f"{map_text}: {bootstrap_text}, no class lost more AP than tolerated", metrics)


def _compare(candidate: RoundSnapshot, champion: RoundSnapshot, params: Params) -> tuple[Comparison, list[str]]:
    classes = candidate.classes()
    comparison = compare_models(
        candidate.validation_images(),
        _predictions(candidate, classes),
        _predictions(champion, classes),
        classes=classes,
        samples=params.promotion.bootstrap_samples,
        seed=params.seed,
    )
    return comparison, classes


def _predictions(snapshot: RoundSnapshot, classes: Sequence[str]) -> pa.Table:
    """The teacher's boxes with class indices into ``classes``; the round may have had another order of classes."""
    table = filter_by_model(snapshot.predictions(), _MODEL)
    own_classes = snapshot.classes()
    if own_classes == list(classes):
        return table
    index = [classes.index(name) if name in classes else None for name in own_classes]
    rows = []
    for row in table.to_pylist():
        boxes = [row["boxes_xyxy"][4 * i : 4 * i + 4] for i in range(len(row["class_ids"]))]
        kept = [i for i, class_id in enumerate(row["class_ids"]) if index[class_id] is not None]
        row["boxes_xyxy"] = [coordinate for i in kept for coordinate in boxes[i]]
        row["scores"] = [row["scores"][i] for i in kept]
        row["class_ids"] = [index[row["class_ids"][i]] for i in kept]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _guardrail_violation(candidate: RoundSnapshot, params: Params) -> str | None:
    """The guard rail that the candidate's training violates, if any.

    Training itself stops at the limits of its time; this compares its summary with today's.
    """
    try:
        summary = files.read_json(candidate.cached_path("derived/train/summary.json"))
    except MissingDataError as error:
        return f"the summary of its training is missing: {error}"
    ratio = float(summary.get("loss_ratio", 0.0))
    if not math.isfinite(ratio) or ratio > params.ssl.divergence_loss_ratio:
        limit = params.ssl.divergence_loss_ratio
        return f"loss_ratio is {ratio:g}, expected at most ssl.divergence_loss_ratio = {limit:g}"
    value = float(candidate.ledger["metrics"]["teacher"]["mAP"])
    return None if math.isfinite(value) else f"mAP is {value}, expected a number"


def _regressed_classes(
    comparison: Comparison, classes: Sequence[str], bounds: PromotionParams
) -> dict[str, dict[str, float]]:
    """AP of the classes that lost more than tolerated, with the confidence of the bootstrap."""
    regressed = {}
    for index, name in enumerate(classes):
        candidate, champion = float(comparison.candidate_ap[index]), float(comparison.champion_ap[index])
        differences = comparison.ap_differences[:, index]
        differences = differences[~np.isnan(differences)]  # bootstrap samples that contain the class
        if champion - candidate > bounds.class_tolerance_points and (differences < 0).mean() >= bounds.confidence_level:
            regressed[name] = {"candidate": round(candidate, 4), "champion": round(champion, 4)}
    return regressed


def _comparison_metrics(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> dict[str, Any]:
    tail = (1 - bounds.confidence_level) / 2
    ordered = sorted(comparison.map_differences.tolist())
    low, high = (ordered[min(int(frac * len(ordered)), len(ordered) - 1)] for frac in (tail, 1 - tail))
    changes = comparison.candidate_ap - comparison.champion_ap
    return {
        "candidate_map": round(comparison.candidate_map, 4),
        "champion_map": round(comparison.champion_map, 4),
        "difference_interval": [round(low, 4), round(high, 4)],
        "class_changes": {name: _rounded(float(change)) for name, change in zip(classes, changes, strict=True)},
        "bounds": bounds.model_dump(),
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
