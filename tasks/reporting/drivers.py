"""What moves the metric weights from image to image, in words and rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.contracts import METRICS
from tasks.reporting.evidence import Document
from tasks.reporting.words import listed, number

ROWS_SHOWN = 6
_ALIKE = 0.01
"""Below this distance weights of single images are told apart by nobody who reads two decimals."""

_IN_WORDS = {
    "log_boxes": "number of boxes",
    "log_size_mean": "mean box size",
    "log_size_std": "spread of box sizes",
    "log_aspect_mean": "mean height over width",
    "log_aspect_std": "spread of height over width",
    "largest_iou": "largest overlap of two boxes",
    "overlapping_frac": "share of overlapping boxes",
}


@dataclass(frozen=True)
class DriverRow:
    """One feature of an image, and what it does to the image's weights."""

    name: str
    moved: float
    """Weight that goes to other metrics because of it, mean over the unlabeled images."""
    per_deviation: Mapping[str, float]
    """Change of each weight for one standard deviation more, by metric."""


def driver_rows(dwa: Document) -> list[DriverRow]:
    """The strongest features, strongest first; none where all images have the same weights or nearly so."""
    drivers = dwa["drivers"]
    if drivers is None or drivers["spread"] < _ALIKE:
        return []
    return [
        DriverRow(_in_words(found["feature"]), found["moved"], found["per_deviation"])
        for found in drivers["features"][:ROWS_SHOWN]
        if found["moved"] > 0
    ]


def drivers_in_words(dwa: Document) -> str:
    """How much the weights differ from image to image and what does it most; empty where they cannot differ."""
    drivers = dwa["drivers"]
    if drivers is None:
        return ""
    far = f"An image’s weights lie {number(drivers['spread'], 3)} from their mean, on average"
    rows = driver_rows(dwa)
    if not rows:
        return f"{far}: one mixture serves nearly all images, and no feature of theirs matters."
    return f"{far}. What moves them most: {listed([row.name for row in rows[:3]])}. {_common(dwa)}"


def _common(dwa: Document) -> str:
    best = max(METRICS, key=lambda name: _or_lowest(dwa["spearman_by_metric"][name]))
    leads = max(METRICS, key=lambda name: dwa["mean_weights"][name])
    if leads == best:
        return f"The mean itself leans to {leads}, which ranks the mistakes best by itself."
    return f"The mean itself leans to {leads}, though by itself {best} ranks the mistakes best."


def _or_lowest(correlation: float | None) -> float:
    return -1.0 if correlation is None else correlation


def _in_words(feature: str) -> str:
    kind, _, class_name = feature.partition(":")
    if kind == "posterior":
        return f"mean posterior of “{class_name}”"
    if kind == "boxes_frac":
        return f"share of boxes “{class_name}”"
    if kind.startswith("scores_"):
        low, high = kind.removeprefix("scores_").removesuffix("_frac").split("_to_")
        return f"share of scores {low} to {high}"
    return _IN_WORDS.get(kind, kind)
