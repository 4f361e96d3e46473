"""Build the rows of the page's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.reporting.report_data import Document, ReportData

ROUNDS_SHOWN = 8
"""Columns of a table by round: the first and the newest."""
REJECTED_SHOWN = 40
SELECTED_SHOWN = 200
DOUBTFUL_SHOWN = 40


@dataclass(frozen=True)
class ClassRow:
    """One class: how often it was labeled, how well it is found, how much it weighs in training."""

    name: str
    boxes: int
    boxes_frac: float
    """Of the most frequent class, for the bar."""
    ap: Sequence[float | None]
    """Of the teacher, one per round shown."""
    change: float | None
    """From the first round that measured it to the newest; None with fewer than two."""
    class_weight: float | None
    """Of the class's own objects in the next training."""
    background_weight: float | None
    """Of background that is claimed for the class in the next training."""


def rounds_shown(history: Sequence[Document]) -> list[Document]:
    """Return all rounds, or the first and the newest ones."""
    return list(history) if len(history) <= ROUNDS_SHOWN else [history[0], *history[-(ROUNDS_SHOWN - 1) :]]


def class_rows(classes: Sequence[str], history: Sequence[Document]) -> list[ClassRow]:
    """Return one row per class, in the order of params.yaml."""
    now, shown = history[-1], rounds_shown(history)
    most = max([*now["boxes_per_class"].values(), 1])
    return [
        ClassRow(
            name=name,
            boxes=now["boxes_per_class"].get(name, 0),
            boxes_frac=now["boxes_per_class"].get(name, 0) / most,
            ap=[_ap(entry, name) for entry in shown],
            change=_change([_ap(entry, name) for entry in history]),
            class_weight=now["class_weights"]["positive"].get(name),
            background_weight=now["class_weights"]["claimed_background"].get(name),
        )
        for name in classes
    ]


@dataclass(frozen=True)
class WantedRow:
    """Boxes of one class: expected in the newest batch when it was picked, drawn in it, expected in the next one."""

    name: str
    wanted: float | None
    """None: the batch was offered by no round, as the seed batch."""
    got: int
    next: float


def wanted_rows(data: ReportData) -> list[WantedRow]:
    """Return one row per class, in the order of params.yaml."""
    before = data.past_rounds[-1]["expected_boxes_per_class"] if data.past_rounds else {}
    return [
        WantedRow(name, before.get(name), data.boxes_of_newest_batch.get(name, 0), data.expected_boxes_per_class[name])
        for name in data.classes
    ]


def pseudo_label_rows(train_summary: Document) -> list[dict[str, Any]]:
    """Return name, threshold and measured precision of each class's pseudo-labels, and their number per image."""
    counts = train_summary["pseudo_boxes_per_image_by_class"]
    classes = train_summary["pseudo_labels"]["classes"]
    return [{"name": name, "per_image": counts[name], **assessed} for name, assessed in classes.items()]


def _ap(entry: Document, name: str) -> float | None:
    ap: float | None = entry["teacher"].get("per_class", {}).get(name)
    return ap


def _change(ap: Sequence[float | None]) -> float | None:
    measured = [value for value in ap if value is not None]
    return measured[-1] - measured[0] if len(measured) > 1 and ap[-1] is not None else None


def metric_contributions(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Return the shares of the metrics in one image's uncertainty; they sum to 1.

    Empty where the uncertainty is not their weighted sum (docs/method.md#eq-15), as in dwa.mode activeteacher, or
    where a weight is negative.
    """
    if not metrics:
        return {}
    names = ["entropy", "overlap", "confidence"]
    if metrics.get("w_objectness_entropy", 0.0):
        names.append("objectness_entropy")
    parts = {name: metrics[f"w_{name}"] * metrics[name] for name in names}
    total = sum(parts.values())
    if min(parts.values()) < 0 or total <= 0 or abs(total - metrics["uncertainty"]) > 1e-6:
        return {}
    return {name: part / total for name, part in parts.items()}


def stage_rows(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return stage, seconds and share of the slowest stage."""
    slowest = max([*seconds.values(), 1e-9])
    return [(stage, took, took / slowest) for stage, took in seconds.items()]


def bought_rows(selection_summary: Document) -> list[Document]:
    """Return what each strategy has bought, and its share of the next batch where several choose.

    Returns:
        ``name``, ``share`` (None: it alone chooses, or no longer), ``images``, ``minutes`` (0 before its first answer),
        ``classification`` and ``localization`` (what a minute found, 1: as much as its batches; None: nothing known).
    """
    shares = {name: found["share"] for name, found in selection_summary.get("portfolio", {}).items()}
    bought = selection_summary.get("bought", {})
    blank = {"images": 0, "minutes": 0.0, "classification": None, "localization": None}
    names = sorted({*shares, *bought}, key=lambda name: (-bought.get(name, blank)["minutes"], name))
    return [{"name": name, "share": shares.get(name), **bought.get(name, blank)} for name in names]


def review_rows(data: ReportData) -> list[tuple[str, int, str]]:
    """Count the reviewed images by outcome, each with what the outcome means."""
    assembled = data.assemble_summary
    return [
        ("with boxes", assembled["labeled_images"], "trained on"),
        ("empty", assembled["empty_images"], "looked at, nothing there"),
        (
            "calibration",
            assembled["calibration_images"],
            "labeled, never trained on; they judge the metric weights",
        ),
        ("skipped", assembled["skipped_images"], "a person could not or would not label them"),
    ]


def rejected_rows(data: ReportData) -> list[tuple[str, str, str]]:
    """Return step, item and reason of every quarantined entry, in the order of the steps."""
    return [(step, entry["item"], entry["reason"]) for step, found in data.rejected.items() for entry in found]
