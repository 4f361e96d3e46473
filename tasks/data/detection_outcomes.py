"""Detections with a known outcome: whether people found an object of that class there.

Of images that the teacher had not been trained on: calibration images, and images that were offered and came back.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from detectron_ext.pseudo_label_precision import is_right
from tasks.data import schemas
from tasks.data.annotations import MarkedBoxes, labeled_boxes, marked_boxes
from tasks.data.detections import StoredDetections, detections_from_table, outside_crowds, read_detections
from tasks.data.label_store import read_labels
from tasks.storage import files

Truth = Mapping[str, MarkedBoxes]
"""Boxes of labeled images by image id; class indices are those of the detections, -1 for a class they do not have."""


def calibration_outcomes(calibration: Path, detections: Path, classes: Sequence[str]) -> pa.Table:
    """Compare the teacher's detections on the calibration images with their labels, schemas.OUTCOMES.

    Args:
        calibration: schemas.ANNOTATED.
        detections: output of infer.
        classes: class names in the order of their indices.
    """
    rows = files.read_table(calibration, schemas.ANNOTATED).to_pylist()
    truth = {row["image_id"]: marked_boxes(row) for row in rows}
    return _outcomes(read_detections(detections, list(truth)), truth, classes)


def returned_outcomes(labels: Path, detections_at_selection: Path, num_batches: int) -> pa.Table:
    """Compare the detections stored with the newest batches with the answers that came back, schemas.OUTCOMES.

    Args:
        labels: folder of label batches.
        detections_at_selection: folder of the detections stored per batch.
        num_batches: batches, newest first, whose images count.
    """
    store = read_labels(labels)
    answers = [answer for answer in store.current.values() if answer.label.status != "skipped"]
    tables = [schemas.OUTCOMES.empty_table()]
    for number in range(max(store.newest_batch - num_batches + 1, 1), store.newest_batch + 1):
        labels_of = {answer.label.image_id: answer.label for answer in answers if answer.picked.offered_batch == number}
        path = detections_at_selection / f"batch-{number:04d}.parquet"
        if labels_of and path.is_file():
            table = files.read_table(path, schemas.DETECTIONS_AT_SELECTION)
            stored_classes = schemas.stored_class_names(table.schema) or []
            truth = {image_id: labeled_boxes(label, stored_classes) for image_id, label in labels_of.items()}
            tables.append(_outcomes(detections_from_table(table), truth, stored_classes))
    return pa.concat_tables(tables)


def _outcomes(detections: Iterable[StoredDetections], truth: Truth, classes: Sequence[str]) -> pa.Table:
    """Return one row per detection on an image of ``truth``; ``classes`` are those of the detections' indices."""
    columns: dict[str, list[object]] = {name: [] for name in schemas.OUTCOMES.names}
    for found in detections:
        if found.image_id not in truth:
            continue
        marked = truth[found.image_id]
        counted = outside_crowds(found, marked)
        right_N = is_right(counted.boxes_xyxy, counted.scores, counted.class_ids, marked.boxes_xyxy, marked.class_ids)
        columns["class_name"] += [classes[index] for index in counted.class_ids]
        columns["score"] += counted.scores.tolist()
        columns["is_right"] += right_N.tolist()
    return pa.table(columns, schema=schemas.OUTCOMES)
