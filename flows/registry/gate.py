"""May a model become champion? Not worse than the one that is, on the same validation images.

The mean must hold, and each class for itself: a rare class cannot be sold for the mean. Whoever cannot be
compared, or whose record is not in order, is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """What the gate says, and the figures behind it."""

    passed: bool
    reason: str
    metrics: dict[str, Any]


def evaluate_gate(candidate: RoundSnapshot, champion: RoundSnapshot | None, params: Params) -> GateResult:
    """Hold a model against the champion.

    Args:
        candidate: the round whose teacher wants to be champion.
        champion: the round of the reigning one; None: there is none.
        params: whose ``promotion`` and ``seed`` count, and whose ``ssl`` bounds the guard rails.
    """
    violation = _guardrail_violation(candidate, params)
    if violation is not None:
        return GateResult(False, violation, {})
    if champion is None:
        return GateResult(True, "there is no champion yet", {})
    if candidate.md5("data/val.parquet") != champion.md5("data/val.parquet"):
        return GateResult(False, "the champion was measured on another validation set", {})
    try:
        comparison, classes = _compare(candidate, champion, params)
    except MissingDataError as error:
        return GateResult(False, f"the two cannot be compared: {error}", {})
    return decide(comparison, classes, params.promotion)


def decide(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> GateResult:
    """The decision behind a comparison.

    Args:
        comparison: candidate against champion.
        classes: names by class index.
        bounds: tolerances and how sure the gate wants to be.
    """
    tolerated = comparison.map_differences >= -bounds.map_tolerance_points
    not_worse_frac = float(tolerated.mean())
    regressed = _regressed_classes(comparison, classes, bounds)
    metrics = {
        **_comparison_metrics(comparison, classes, bounds),
        "not_worse_frac": round(not_worse_frac, 4),
        "lost_classes": regressed,
    }
    map_text = f"mAP {comparison.candidate_map:.2f} against the champion's {comparison.champion_map:.2f}"
    bootstrap_text = f"not more than {bounds.map_tolerance_points:g} points worse in {not_worse_frac:.0%} of {bounds.bootstrap_samples} samples"
    if not_worse_frac < bounds.confidence_level:
        return GateResult(
            False, f"{map_text}: {bootstrap_text}, expected at least {bounds.confidence_level:.0%}", metrics
        )
    if regressed:
        class_text = ", ".join(
            f"{name} {change['champion']:.1f} to {change['candidate']:.1f}" for name, change in regressed.items()
        )
        return GateResult(False, f"{map_text}, but AP fell for {class_text}", metrics)
    return GateResult(True, f"{map_text}: {bootstrap_text}, no class lost more than tolerated", metrics)


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
    """The teacher's boxes with the class indices of ``classes``: parameters may have been reordered since."""
    table = filter_by_model(snapshot.predictions(), _MODEL)
    own_classes = snapshot.classes()
    if own_classes == list(classes):
        return table
    index = [classes.index(name) if name in classes else None for name in own_classes]
    rows = []
    for row in table.to_pylist():
        boxes = [row["boxes_xyxy"][4 * place : 4 * place + 4] for place in range(len(row["class_ids"]))]
        kept = [place for place, label in enumerate(row["class_ids"]) if index[label] is not None]
        row["boxes_xyxy"] = [corner for place in kept for corner in boxes[place]]
        row["scores"] = [row["scores"][place] for place in kept]
        row["class_ids"] = [index[row["class_ids"][place]] for place in kept]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _guardrail_violation(candidate: RoundSnapshot, params: Params) -> str | None:
    """Training stops by itself when it leaves its bounds; this holds the record of it against today's bounds."""
    try:
        summary = files.read_json(candidate.cached_path("derived/train/summary.json"))
    except MissingDataError as error:
        return f"the record of its training is gone: {error}"
    ratio = float(summary.get("loss_ratio", 0.0))
    if not math.isfinite(ratio) or ratio > params.ssl.divergence_loss_ratio:
        return f"loss_ratio is {ratio:g}, expected at most ssl.divergence_loss_ratio = {params.ssl.divergence_loss_ratio:g}"
    value = float(candidate.ledger["metrics"]["teacher"]["mAP"])
    return None if math.isfinite(value) else f"mAP is {value}, expected a number"


def _regressed_classes(
    comparison: Comparison, classes: Sequence[str], bounds: PromotionParams
) -> dict[str, dict[str, float]]:
    """Classes that fell by more than tolerated, and not by the luck of a few images."""
    regressed = {}
    for index, name in enumerate(classes):
        candidate, champion = float(comparison.candidate_ap[index]), float(comparison.champion_ap[index])
        class_differences = comparison.ap_differences[:, index]
        class_differences = class_differences[
            class_differences == class_differences
        ]  # samples that hold the class at all
        if (
            champion - candidate > bounds.class_tolerance_points
            and (class_differences < 0).mean() >= bounds.confidence_level
        ):
            regressed[name] = {"candidate": round(candidate, 4), "champion": round(champion, 4)}
    return regressed


def _comparison_metrics(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> dict[str, Any]:
    tail = (1 - bounds.confidence_level) / 2
    ordered = sorted(comparison.map_differences.tolist())
    low, high = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (tail, 1 - tail))
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
