"""May a model become champion? Not worse than the one that is, on the same validation images.

The mean must hold, and each class for itself: a rare class cannot be sold for the mean. Whoever cannot be
compared, or whose record is not in order, is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flows.records.dvc_objects import MissingBytesError
from flows.records.recorded import RecordedRound, of_model
from tasks import files
from tasks.contracts import PREDICTIONS
from tasks.gate_sections import PromotionParams
from tasks.paired_bootstrap import Comparison, compare
from tasks.params import Params

_MODEL = "teacher"


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and the figures behind it."""

    passed: bool
    why: str
    figures: dict[str, Any]


def judge(candidate: RecordedRound, champion: RecordedRound | None, params: Params) -> Verdict:
    """Hold a model against the champion.

    Args:
        candidate: the round whose teacher wants to be champion.
        champion: the round of the reigning one; None: there is none.
        params: whose ``promotion`` and ``seed`` count, and whose ``ssl`` bounds the guard rails.
    """
    off = _off_the_rails(candidate, params)
    if off is not None:
        return Verdict(False, off, {})
    if champion is None:
        return Verdict(True, "there is no champion yet", {})
    if candidate.digest("data/val.parquet") != champion.digest("data/val.parquet"):
        return Verdict(False, "the champion was measured on another validation set", {})
    try:
        comparison, classes = _compare(candidate, champion, params)
    except MissingBytesError as error:
        return Verdict(False, f"the two cannot be compared: {error}", {})
    return weigh_up(comparison, classes, params.promotion)


def weigh_up(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> Verdict:
    """The decision behind a comparison.

    Args:
        comparison: candidate against champion.
        classes: names by class index.
        bounds: tolerances and how sure the gate wants to be.
    """
    tolerated = comparison.map_differences >= -bounds.map_tolerance_points
    share = float(tolerated.mean())
    lost = _lost_classes(comparison, classes, bounds)
    figures = {**_figures(comparison, classes, bounds), "not_worse_frac": round(share, 4), "lost_classes": lost}
    maps = f"mAP {comparison.candidate_map:.2f} against the champion's {comparison.champion_map:.2f}"
    sure = f"not more than {bounds.map_tolerance_points:g} points worse in {share:.0%} of {bounds.samples} samples"
    if share < bounds.confidence_frac:
        return Verdict(False, f"{maps}: {sure}, expected at least {bounds.confidence_frac:.0%}", figures)
    if lost:
        words = ", ".join(
            f"{name} {change['champion']:.1f} to {change['candidate']:.1f}" for name, change in lost.items()
        )
        return Verdict(False, f"{maps}, but AP fell for {words}", figures)
    return Verdict(True, f"{maps}: {sure}, no class lost more than tolerated", figures)


def _compare(candidate: RecordedRound, champion: RecordedRound, params: Params) -> tuple[Comparison, list[str]]:
    classes = candidate.classes()
    comparison = compare(
        candidate.validation_images(),
        _predictions(candidate, classes),
        _predictions(champion, classes),
        classes=classes,
        samples=params.promotion.samples,
        seed=params.seed,
    )
    return comparison, classes


def _predictions(recorded: RecordedRound, classes: Sequence[str]) -> pa.Table:
    """The teacher's boxes with the class indices of ``classes``: parameters may have been reordered since."""
    table = of_model(recorded.predictions(), _MODEL)
    own = recorded.classes()
    if own == list(classes):
        return table
    index = [classes.index(name) if name in classes else None for name in own]
    rows = []
    for row in table.to_pylist():
        boxes = [row["boxes_xyxy"][4 * place : 4 * place + 4] for place in range(len(row["labels"]))]
        kept = [place for place, label in enumerate(row["labels"]) if index[label] is not None]
        row["boxes_xyxy"] = [corner for place in kept for corner in boxes[place]]
        row["scores"] = [row["scores"][place] for place in kept]
        row["labels"] = [index[row["labels"][place]] for place in kept]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _off_the_rails(candidate: RecordedRound, params: Params) -> str | None:
    """Training stops by itself when it leaves its bounds; this holds the record of it against today's bounds."""
    try:
        summary = files.read_json(candidate.stored("derived/train/summary.json"))
    except MissingBytesError as error:
        return f"the record of its training is gone: {error}"
    ratio = float(summary.get("loss_ratio", 0.0))
    if not math.isfinite(ratio) or ratio > params.ssl.max_loss_ratio:
        return f"loss_ratio is {ratio:g}, expected at most ssl.max_loss_ratio = {params.ssl.max_loss_ratio:g}"
    value = float(candidate.ledger["figures"]["teacher"]["mAP"])
    return None if math.isfinite(value) else f"mAP is {value}, expected a number"


def _lost_classes(
    comparison: Comparison, classes: Sequence[str], bounds: PromotionParams
) -> dict[str, dict[str, float]]:
    """Classes that fell by more than tolerated, and not by the luck of a few images."""
    lost = {}
    for index, name in enumerate(classes):
        candidate, champion = float(comparison.candidate_ap[index]), float(comparison.champion_ap[index])
        drawn = comparison.ap_differences[:, index]
        drawn = drawn[drawn == drawn]  # samples that hold the class at all
        if champion - candidate > bounds.class_tolerance_points and (drawn < 0).mean() >= bounds.confidence_frac:
            lost[name] = {"candidate": round(candidate, 4), "champion": round(champion, 4)}
    return lost


def _figures(comparison: Comparison, classes: Sequence[str], bounds: PromotionParams) -> dict[str, Any]:
    tail = (1 - bounds.confidence_frac) / 2
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
