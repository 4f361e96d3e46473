"""Describe which features change the metric weights between images, in words and rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.reporting.report_data import Document
from tasks.runtime.formatting import join_and, number

ROWS_SHOWN = 6
_MIN_STD = 0.01
"""Weights that differ by less are equal in the two decimals that the page shows."""

_FEATURE_NAMES = {
    "log_boxes": "number of boxes",
    "log_size_mean": "mean box size",
    "log_size_std": "spread of box sizes",
    "log_aspect_mean": "mean height over width",
    "log_aspect_std": "spread of height over width",
    "largest_iou": "largest overlap of two boxes",
    "overlapping_frac": "share of overlapping boxes",
}


@dataclass(frozen=True)
class FeatureImportanceRow:
    """One feature of an image, and its effect on the image's weights."""

    name: str
    importance: float
    """Weight that goes to other metrics because of it, mean over the unlabeled images."""
    effect_per_std: Mapping[str, float]
    """Change of each weight for one standard deviation more, by metric."""


def importance_rows(dwa: Document) -> list[FeatureImportanceRow]:
    """Return the strongest features, strongest first; none where the weights of all images are nearly the same."""
    drivers = dwa["feature_importance"]
    if drivers is None or drivers["std"] < _MIN_STD:
        return []
    return [
        FeatureImportanceRow(_feature_name(found["feature"]), found["importance"], found["effect_per_std"])
        for found in drivers["features"][:ROWS_SHOWN]
        if found["importance"] > 0
    ]


def importance_text(dwa: Document) -> str:
    """Say how much the weights differ between images, and which feature matters most; empty if they cannot differ."""
    drivers = dwa["feature_importance"]
    if drivers is None:
        return ""
    deviation = f"An image’s weights lie {number(drivers['std'], 3)} from their mean, on average"
    rows = importance_rows(dwa)
    if not rows:
        return f"{deviation}: one mixture serves nearly all images, and no feature of theirs matters."
    return f"{deviation}. What moves them most: {join_and([row.name for row in rows[:3]])}. {_mean_weights_text(dwa)}"


def _mean_weights_text(dwa: Document) -> str:
    names = list(dwa["mean_weights"])
    best = max(names, key=lambda name: _or_minus_one(dwa["spearman_by_metric"][name]))
    leads = max(names, key=lambda name: dwa["mean_weights"][name])
    best, leads = best.replace("_", " "), leads.replace("_", " ")
    if leads == best:
        return f"The mean itself leans to {leads}, which ranks the mistakes best by itself."
    return f"The mean itself leans to {leads}, though by itself {best} ranks the mistakes best."


def _or_minus_one(correlation: float | None) -> float:
    return -1.0 if correlation is None else correlation


def _feature_name(feature: str) -> str:
    kind, _, class_name = feature.partition(":")
    if kind == "posterior":
        return f"mean posterior of “{class_name}”"
    if kind == "boxes_frac":
        return f"share of boxes “{class_name}”"
    if kind.startswith("scores_"):
        low, high = kind.removeprefix("scores_").removesuffix("_frac").split("_to_")
        return f"share of scores {low} to {high}"
    return _FEATURE_NAMES.get(kind, kind)
