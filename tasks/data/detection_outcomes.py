"""Detections with a known outcome: whether people found an object of that class there.

Of images that the teacher had not been trained on: calibration images, and images that were offered and came back.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from detectron_ext.pseudo_label_precision import is_right
from tasks.data import schemas
from tasks.data.detections import StoredDetections, detections_from_table, read_detections
from tasks.data.label_store import read_labels
from tasks.storage import files

Truth = Mapping[str, tuple[Sequence[Sequence[float]], Sequence[str]]]
"""Boxes and class names of labeled images, by image id."""


def calibration_outcomes(calibration: Path, detections: Path, classes: Sequence[str]) -> pa.Table:
    """Compare the teacher's detections on the calibration images with their labels, schemas.OUTCOMES.

    Args:
        calibration: schemas.ANNOTATED.
        detections: output of infer.
        classes: class names in the order of their indices.
    """
    rows = files.read_table(calibration, schemas.ANNOTATED).to_pylist()
    truth = {
        row["image_id"]: (
            np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4).tolist(),
            [classes[index] for index in row["class_ids"]],
        )
        for row in rows
    }
    return _outcomes(read_detections(detections, list(truth)), truth, classes)


def returned_outcomes(labels: Path, detections_at_selection: Path, num_batches: int) -> pa.Table:
    """Compare the detections stored with the newest batches with the answers that came back, schemas.OUTCOMES.

    Args:
        labels: folder of label batches.
        detections_at_selection: folder of the detections stored per batch.
        num_batches: batches, newest first, whose images count.
    """
    store = read_labels(labels)
    answers = {image_id: answer.label for image_id, answer in store.current.items() if answer.label.status != "skipped"}
    tables = [schemas.OUTCOMES.empty_table()]
    for number in range(max(store.newest_batch - num_batches + 1, 1), store.newest_batch + 1):
        truth = {
            image_id: ([box.xyxy_px for box in label.boxes], [box.category for box in label.boxes])
            for image_id, label in answers.items()
            if label.offered_batch == number
        }
        path = detections_at_selection / f"batch-{number:04d}.parquet"
        if truth and path.is_file():
            table = files.read_table(path, schemas.DETECTIONS_AT_SELECTION)
            stored_classes = schemas.stored_class_names(table.schema) or []
            tables.append(_outcomes(detections_from_table(table), truth, stored_classes))
    return pa.concat_tables(tables)


def _outcomes(detections: Iterable[StoredDetections], truth: Truth, classes: Sequence[str]) -> pa.Table:
    """Return one row per detection on an image of ``truth``; ``classes`` are those of the detections' indices."""
    index_of = {name: index for index, name in enumerate(classes)}
    columns: dict[str, list[object]] = {name: [] for name in schemas.OUTCOMES.names}
    for found in detections:
        if found.image_id not in truth:
            continue
        boxes, names = truth[found.image_id]
        right_N = is_right(
            found.boxes_xyxy,
            found.scores,
            found.class_ids,
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array([index_of.get(name, -1) for name in names], dtype=np.int64),
        )
        columns["class_name"] += [classes[index] for index in found.class_ids]
        columns["score"] += found.scores.tolist()
        columns["is_right"] += right_N.tolist()
    return pa.table(columns, schema=schemas.OUTCOMES)
