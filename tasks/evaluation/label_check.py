"""List labels that detections contradict, the surest error first (docs/method.md#label-errors)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq

from tasks.data.annotations import MarkedBoxes, marked_boxes
from tasks.data.detections import StoredDetections, detections_from_table, outside_crowds, read_shards
from tasks.data.schemas import ANNOTATED, DETECTIONS_AT_SELECTION, stored_class_names
from tasks.evaluation.label_errors import ErrorKind, LabelError, find_label_errors
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
    """Of the error that puts the image where it stands: mean over the teachers that were asked, [0, 1]."""
    kind: ErrorKind
    """Of that error."""
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
    labeled: Path, infer: Path, detections_at_selection: Path, classes: Sequence[str], left_out: Collection[str] = ()
) -> list[DoubtfulLabel]:
    """List the labeled images with the surest errors of each kind in turn, at most ``MAX_LISTED``.

    Two teachers are asked: the one that offered the image, which had not seen its label, and that of this round, which
    is better and was trained on it. Of images that no round offered, as the seed set, only the second.

    Args:
        labeled: labeled images, schemas.ANNOTATED.
        infer: folder with the shards of the labeled images.
        detections_at_selection: folder with the detections of the teacher that offered an image.
        classes: class names in the order of their indices.
        left_out: images that are not listed, as those whose label was checked.
    """
    rows = files.read_table(labeled, ANNOTATED).to_pylist()
    truth = {row["image_id"]: row for row in rows if row["image_id"] not in left_out}
    unseen = {found.image_id: found for found in _detections_when_offered(detections_at_selection, classes, truth)}
    found_of: dict[str, list[Sequence[LabelError]]] = {}
    for shard in read_shards(infer, "labeled"):
        for found in detections_from_table(shard):
            if found.image_id in truth:
                asked = [found, *([unseen[found.image_id]] if found.image_id in unseen else [])]
                marked = marked_boxes(truth[found.image_id])
                found_of[found.image_id] = [_errors(one, marked) for one in asked]
    by_kind = {kind: _rank(kind, found_of, truth, classes) for kind in get_args(ErrorKind)}
    return _take_in_turn(by_kind)[:MAX_LISTED]


def _rank(
    kind: ErrorKind,
    found_of: Mapping[str, Sequence[Sequence[LabelError]]],
    truth: Mapping[str, Any],
    classes: Sequence[str],
) -> list[DoubtfulLabel]:
    """Rank the images by their surest error of one kind."""
    ranked = []
    for image_id, found in found_of.items():
        own = [[error for error in errors if error.kind == kind] for errors in found]
        worst = max((error for errors in own for error in errors), key=lambda error: error.strength, default=None)
        if worst is None or worst.strength <= 0:
            continue
        strength = float(np.mean([errors[0].strength if errors else 0.0 for errors in own]))
        batch, class_name = truth[image_id]["batch"], classes[worst.class_id]
        ranked.append(DoubtfulLabel(image_id, batch, strength, kind, class_name, worst.box_xyxy, len(found) > 1))
    return sorted(ranked, key=lambda label: (-label.strength, label.image_id))


def _take_in_turn(by_kind: Mapping[ErrorKind, Sequence[DoubtfulLabel]]) -> list[DoubtfulLabel]:
    """Take the surest of each kind, then the second, and so on; each image once.

    Strengths of different kinds cannot be compared: most false alarms are about missing labels, with the score of the
    detection as their strength, while a label that lies half beside its object seldom reaches 0.5.
    """
    listed: dict[str, DoubtfulLabel] = {}
    for turn in zip_longest(*by_kind.values()):
        for label in sorted((one for one in turn if one is not None), key=lambda one: -one.strength):
            listed.setdefault(label.image_id, label)
    return list(listed.values())


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
        counted.stability.astype(np.float64),
        marked.boxes_xyxy.astype(np.float64),
        marked.class_ids,
    )
