"""Measure how far annotators agree with the pre-drawn boxes, and with each other.

A pure function of the label batches: each answer holds the boxes that were pre-drawn for it, as they were then.
Figures are of the newest batch; boxes match at IoU 0.5 and in their class. The time grows linearly in the number of
answers, also where all are of one image.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.evaluation.matching import match_boxes

_UNCHANGED_TOLERANCE_PX = 0.5
"""Corners moved by less were not moved by a person: label tools keep percentages, and round them."""
_DIGITS = 4
_MAX_PARTNERS = 20
"""Annotators after one's own name with whom one is compared on an image; the pairs of thousands would be millions."""

AnnotationsByImage = Mapping[str, Sequence[LabeledImage]]
"""Every answer there is, by image id, in the order they came in."""


@dataclass(frozen=True)
class Agreement:
    """Counts of kept, changed, deleted and added boxes from a first set to a second one; sums over images."""

    images: int = 0
    unchanged: int = 0
    """Boxes of the first set that stand in the second one as they were."""
    box_adjusted: int = 0
    """With other corners, at an IoU of at least 0.5."""
    class_changed: int = 0
    """In the same place, and of another class."""
    deleted: int = 0
    added: int = 0
    iou_sum: float = 0.0
    """Over kept and moved boxes."""

    def __add__(self, other: "Agreement") -> "Agreement":
        """Of the images of both."""
        mine, theirs = vars(self), vars(other)
        return Agreement(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def f1(self) -> float | None:
        """Of the boxes that mean the same, [0, 1]; None where there is no box at all."""
        boxes = 2 * (self.unchanged + self.box_adjusted + self.class_changed) + self.deleted + self.added
        return 2 * (self.unchanged + self.box_adjusted) / boxes if boxes else None

    @property
    def mean_iou(self) -> float | None:
        """Of the boxes that mean the same, [0.5, 1]; None without any."""
        return self.iou_sum / (self.unchanged + self.box_adjusted) if self.unchanged + self.box_adjusted else None

    def as_metrics(self) -> dict[str, Any]:
        """Return the figures for the campaign's history."""
        counts = {name: value for name, value in vars(self).items() if name != "iou_sum"}
        return {**counts, "f1": _rounded(self.f1), "mean_iou": _rounded(self.mean_iou)}


def agreement_metrics(batch: LabelBatch, all_annotations: AnnotationsByImage) -> dict[str, Any]:
    """Measure the agreement with the pre-drawn boxes and between annotators, in total and by annotator.

    Args:
        batch: the newest one.
        all_annotations: all answers, those of ``batch`` included.
    """
    labels = (*batch.images, *batch.other_annotations)
    times_given = Counter(
        other for image_id in {label.image_id for label in labels} for other in all_annotations[image_id]
    )
    new_annotations = [
        label for label in labels if _is_compared(label) and times_given[label] == 1
    ]  # an answer that counts again was news in an earlier batch
    corrections = [
        (label.annotator, compare(label.preannotations, label.boxes))
        for label in new_annotations
        if label.preannotations is not None
    ]
    comparisons = list(_compare_annotators(new_annotations, all_annotations))
    by_annotator = [(name, found) for names, found in comparisons for name in names]
    return {
        "with_preannotations": {
            **_sum(found for _, found in corrections).as_metrics(),
            "annotators": _by_annotator(corrections),
        },
        "between_annotators": {
            **_sum(found for _, found in comparisons).as_metrics(),
            "annotators": _by_annotator(by_annotator),
        },
    }


def agreement_by_annotator(all_annotations: AnnotationsByImage) -> dict[str, Agreement]:
    """Compare the latest answers of annotators to one image, over all images; checks and skipped images left out.

    Returns:
        The sum over all comparisons that an annotator has a part in, by name.
    """
    answers = [label for labels in all_annotations.values() for label in labels if _is_compared(label)]
    by_name: dict[str, Agreement] = {}
    for names, found in _compare_annotators(answers, all_annotations):
        for name in names:
            by_name[name] = by_name.get(name, Agreement()) + found
    return by_name


def compare(first: Sequence[Box], second: Sequence[Box]) -> Agreement:
    """Compare two sets of boxes on one image."""
    pairs = match_boxes(first, second)
    same = [pair for pair in pairs if pair.same_class]
    unchanged = sum(_is_unchanged(first[pair.first], second[pair.second]) for pair in same)
    return Agreement(
        images=1,
        unchanged=unchanged,
        box_adjusted=len(same) - unchanged,
        class_changed=len(pairs) - len(same),
        deleted=len(first) - len(pairs),
        added=len(second) - len(pairs),
        iou_sum=sum(pair.iou for pair in same),
    )


def _is_compared(label: LabeledImage) -> bool:
    """Whether an answer says how people agree: a check began with the boxes of another answer, so it does not."""
    return label.status != "skipped" and label.checks_batch is None


def _is_unchanged(first: Box, second: Box) -> bool:
    return max(abs(a - b) for a, b in zip(first.xyxy_px, second.xyxy_px, strict=True)) < _UNCHANGED_TOLERANCE_PX


def _compare_annotators(
    new_annotations: Iterable[LabeledImage], all_annotations: AnnotationsByImage
) -> Iterable[tuple[tuple[str, str], Agreement]]:
    """Yield pairs of answers of two annotators to one image, of which at least one is new; names in order."""
    new_annotators: dict[str, set[str]] = {}
    for label in new_annotations:
        new_annotators.setdefault(label.image_id, set()).add(label.annotator)
    for image_id, annotators in sorted(new_annotators.items()):
        latest = {label.annotator: label for label in all_annotations[image_id] if _is_compared(label)}
        for first, second in _pairs(sorted(latest)):
            if {first, second} & annotators:
                yield (first, second), compare(latest[first].boxes, latest[second].boxes)


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each pair, in order; of more than ``_MAX_PARTNERS`` + 1 names, each with the next ones only."""
    for position, first in enumerate(names):
        for second in names[position + 1 : position + 1 + _MAX_PARTNERS]:
            yield first, second


def _by_annotator(found: Iterable[tuple[str, Agreement]]) -> dict[str, dict[str, Any]]:
    by_name: dict[str, Agreement] = {}
    for name, agreement in found:
        by_name[name] = by_name.get(name, Agreement()) + agreement
    return {name: by_name[name].as_metrics() for name in sorted(by_name)}


def _sum(found: Iterable[Agreement]) -> Agreement:
    return sum(found, start=Agreement())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
