"""Choose labeled images whose labels the teachers doubt, to be checked with the next batch (docs/method.md#relabel)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks.data.schemas import RELABEL
from tasks.evaluation.label_check import DoubtfulLabel
from tasks.params.stages import BudgetParams
from tasks.selection.annotation_cost import AnnotationCost

_TOLERANCE = 1e-9  # ten times 0.1 must fit into 1
_QUESTIONS = {
    "missing": "a {name} at {box} may not be labeled",
    "misplaced": "the box of a {name} at {box} may be badly placed",
    "swapped": "the box at {box} may show a {name}",
}


@dataclass(frozen=True)
class RelabelPicks:
    """Labels to be checked, the most doubtful first."""

    labels: Sequence[DoubtfulLabel]
    minutes: Mapping[str, float]
    """Expected minutes by image id."""
    spent: float
    """Their cost in the budget's unit."""

    def as_table(self, first_rank: int) -> pa.Table:
        """Return the rows of schemas.RELABEL, ranked from ``first_rank`` on."""
        rows: list[dict[str, Any]] = [
            {
                "image_id": label.image_id,
                "rank": first_rank + place,
                "batch": label.batch,
                "strength": label.strength,
                "kind": label.kind,
                "class_name": label.class_name,
                "box_xyxy": label.box_xyxy,
                "expected_minutes": self.minutes[label.image_id],
                "reason": reason_in_words(label),
            }
            for place, label in enumerate(self.labels)
        ]
        return pa.Table.from_pylist(rows, schema=RELABEL)


def pick_relabels(
    doubtful: Sequence[DoubtfulLabel],
    num_boxes: Mapping[str, int],
    left_out: Collection[str],
    cost_model: AnnotationCost,
    budget: BudgetParams,
) -> RelabelPicks:
    """Take the most doubtful labels while they fit in ``budget.relabel_frac`` of the budget.

    One that does not fit is passed over: with a small share a single crowded image would block the list for good.

    Args:
        doubtful: labels by falling doubt.
        num_boxes: labeled boxes by image id.
        left_out: images that are not asked for: checked before, with the annotators, or with crowd regions, which not
            every label tool can show and give back.
        cost_model: expected minutes, as of a new image with so many boxes: an upper bound, since they are drawn.
        budget: its unit, amount and share.
    """
    share, spent = budget.relabel_frac * budget.amount, 0.0
    labels: list[DoubtfulLabel] = []
    minutes: dict[str, float] = {}
    for label in doubtful:
        shown = num_boxes[label.image_id] + (label.kind == "missing")
        expected_minutes = cost_model.minutes_per_image + cost_model.minutes_per_box * shown
        cost = {"images": 1.0, "boxes": max(float(shown), 1.0), "minutes": expected_minutes}[budget.unit]
        if label.image_id in left_out or spent + cost > share + _TOLERANCE:
            continue
        spent += cost
        labels.append(label)
        minutes[label.image_id] = expected_minutes
    return RelabelPicks(labels, minutes, spent)


def reason_in_words(label: DoubtfulLabel) -> str:
    """Say what is doubted, and what is asked for."""
    x1, y1, x2, y2 = (round(corner) for corner in label.box_xyxy)
    box = f"({x1}, {y1}) to ({x2}, {y2})"
    question = _QUESTIONS[label.kind].format(name=label.class_name, box=box)
    shown = "the boxes drawn are those of the label"
    shown += ", and what the teacher would add" if label.kind == "missing" else ""
    return f"check of the label of batch {label.batch}: {question} (doubt {label.strength:.2f}); {shown}"
