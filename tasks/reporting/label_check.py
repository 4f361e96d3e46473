"""List labels that detections contradict, the surest error first (docs/method.md#label-errors)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.data.annotations import MarkedBoxes, marked_boxes
from tasks.data.detections import StoredDetections, detections_from_table, outside_crowds, read_shards
from tasks.data.schemas import ANNOTATED, DETECTIONS_AT_SELECTION, stored_class_names
from tasks.evaluation.label_errors import LabelError, find_label_errors
from tasks.storage import files

MAX_LISTED = 200
"""Images in the list; it is for people, who check some a day."""


@dataclass(frozen=True)
class DoubtfulLabel:
    """One labeled image that a person should look at again."""

    image_id: str
    batch: int
    """Label batch of the answer that counts."""
    strength: float
    """Mean, over the teachers that were asked, of the surest error of each, [0, 1]."""
    kind: str
    """Of the surest error: missing, misplaced or swapped."""
    class_name: str
    """What the teacher sees there."""
    box_xyxy: tuple[float, float, float, float]
    """Where, px."""
    was_unseen: bool
    """Whether one of the teachers had not been trained on the image."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields for ``label_check.json``."""
        corners = [round(corner, 2) for corner in self.box_xyxy]
        return {**vars(self), "strength": round(self.strength, 4), "box_xyxy": corners}


def doubtful_labels(
    labeled: Path, infer: Path, detections_at_selection: Path, classes: Sequence[str]
) -> list[DoubtfulLabel]:
    """Rank the labeled images by how surely something is wrong with their labels, at most ``MAX_LISTED``.

    Two teachers are asked: the one that offered the image, which had not seen its label, and that of this round, which
    is better and was trained on it. Of images that no round offered, as the seed set, only the second.

    Args:
        labeled: labeled images, schemas.ANNOTATED.
        infer: folder with the shards of the labeled images.
        detections_at_selection: folder with the detections of the teacher that offered an image.
        classes: class names in the order of their indices.
    """
    truth = {row["image_id"]: row for row in files.read_table(labeled, ANNOTATED).to_pylist()}
    unseen = {found.image_id: found for found in _detections_when_offered(detections_at_selection, classes, truth)}
    ranked = []
    for shard in read_shards(infer, "labeled"):
        for found in detections_from_table(shard):
            row = truth.get(found.image_id)
            if row is not None:
                asked = [found] if found.image_id not in unseen else [found, unseen[found.image_id]]
                ranked.append(_judge(row, [_errors(one, marked_boxes(row)) for one in asked], classes))
    ranked.sort(key=lambda label: (-label.strength, label.image_id))
    return [label for label in ranked[:MAX_LISTED] if label.strength > 0]


def _detections_when_offered(
    folder: Path, classes: Sequence[str], truth: Mapping[str, Any]
) -> Iterator[StoredDetections]:
    """Yield the detections of each labeled image in the order in which batches were offered: the newest one last."""
    for path in sorted(folder.glob("batch-*.parquet")):
        table = pq.read_table(path)
        stored = stored_class_names(table.schema)
        if not table.num_rows or stored is None or list(stored) != list(classes):
            continue  # after a change of the classes, indices mean others
        files.read_table(path, DETECTIONS_AT_SELECTION, columns=["image_id"])  # refuses a table of another form
        yield from (found for found in detections_from_table(table) if found.image_id in truth)


def _errors(found: StoredDetections, marked: MarkedBoxes) -> list[LabelError]:
    counted = outside_crowds(found, marked)
    return find_label_errors(
        counted.boxes_xyxy.astype(np.float64),
        counted.scores.astype(np.float64),
        counted.class_ids,
        marked.boxes_xyxy.astype(np.float64),
        marked.class_ids,
    )


def _judge(row: Mapping[str, Any], found: Sequence[Sequence[LabelError]], classes: Sequence[str]) -> DoubtfulLabel:
    strengths = [errors[0].strength if errors else 0.0 for errors in found]
    worst = max((error for errors in found for error in errors), key=lambda error: error.strength, default=None)
    return DoubtfulLabel(
        image_id=row["image_id"],
        batch=row["batch"],
        strength=float(np.mean(strengths)),
        kind="" if worst is None else worst.kind,
        class_name="" if worst is None else classes[worst.class_id],
        box_xyxy=(0.0, 0.0, 0.0, 0.0) if worst is None else worst.box_xyxy,
        was_unseen=len(found) > 1,
    )
