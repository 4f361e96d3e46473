"""Measure each annotator: work done, accuracy on honeypots, agreement with others. A pure function of the labels."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tasks.data.label_store import LabelStore
from tasks.data.schemas import LabeledImage
from tasks.reporting.agreement import Agreement, agreement_by_annotator, compare

_DIGITS = 4


@dataclass(frozen=True)
class Person:
    """Figures of one annotator; changed answers count once, with what they are now."""

    annotator: str
    answers: int
    """Images answered, honeypots included."""
    skipped: int
    """Part of ``answers``."""
    boxes: int
    """In these answers."""
    minutes: float | None
    """Measured by the label tool; None where it measures none."""
    honeypots: Agreement
    """From the known labels to the answers: ``deleted`` are objects that were missed, ``added`` boxes too many."""
    agreement: Agreement
    """With other annotators of the same images."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures for ``gleaner people --json``."""
        honeypots, agreement = self.honeypots.as_metrics(), self.agreement.as_metrics()
        return {
            "annotator": self.annotator,
            "answers": self.answers,
            "skipped": self.skipped,
            "boxes": self.boxes,
            "minutes": None if self.minutes is None else round(self.minutes, _DIGITS),
            "honeypots": {
                "images": honeypots["images"],
                "accuracy_f1": honeypots["f1"],
                "mean_iou": honeypots["mean_iou"],
                "missed_objects": honeypots["deleted"],
                "extra_boxes": honeypots["added"],
                "wrong_classes": honeypots["class_changed"],
            },
            "agreement": {"comparisons": agreement["images"], "f1": agreement["f1"], "mean_iou": agreement["mean_iou"]},
        }


def measure_people(store: LabelStore) -> list[Person]:
    """Measure every annotator, by name; labels a campaign started with are nobody's (docs/method.md#honeypots)."""
    answers: dict[str, dict[tuple[str, int], LabeledImage]] = defaultdict(dict)
    for label in (*_given(store), *store.honeypots):
        answers[label.annotator][label.image_id, label.offered_batch] = label
    others = agreement_by_annotator(
        {image_id: [a for a in given if a.offered_batch > 0] for image_id, given in store.all_annotations.items()}
    )
    honeypots = _honeypot_scores(store)
    return [
        Person(
            annotator=name,
            answers=len(given),
            skipped=sum(label.status == "skipped" for label in given.values()),
            boxes=sum(label.num_marked for label in given.values()),
            minutes=_minutes(given.values()),
            honeypots=honeypots.get(name, Agreement()),
            agreement=others.get(name, Agreement()),
        )
        for name, given in sorted(answers.items())
    ]


def _given(store: LabelStore) -> Iterable[LabeledImage]:
    return (label for labels in store.all_annotations.values() for label in labels if label.offered_batch > 0)


def _honeypot_scores(store: LabelStore) -> dict[str, Agreement]:
    """Compare answers to honeypots with the labels as they are now; nobody is compared with a label of their own."""
    scores: dict[str, Agreement] = {}
    for answer in store.honeypots:
        known = store.current.get(answer.image_id)
        own = {label.annotator for label in store.all_annotations.get(answer.image_id, ())}
        if known is None or known.label.status == "skipped" or answer.status == "skipped" or answer.annotator in own:
            continue
        found = compare(known.label.boxes, answer.boxes)
        scores[answer.annotator] = scores.get(answer.annotator, Agreement()) + found
    return scores


def _minutes(answers: Iterable[LabeledImage]) -> float | None:
    seconds = [label.seconds_spent for label in answers if label.seconds_spent is not None]
    return sum(seconds) / 60 if seconds else None
