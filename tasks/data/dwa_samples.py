"""Build the training samples of the DWA network: a teacher's detections on an image and the labels people gave it.

Only images that the teacher had not been trained on count (docs/method.md#realized-loss).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectron_ext.detection_loss import RealizedLoss, realized_loss
from detectron_ext.image_features import image_features
from detectron_ext.uncertainty_metrics import Floats
from tasks.data import schemas
from tasks.data.annotations import labeled_boxes, marked_boxes
from tasks.data.detections import StoredDetections, detections_from_table, outside_crowds, read_detections
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_log = logging.getLogger(__name__)

# Group of the calibration images, whose detections are renewed with every teacher.
CALIBRATION_GROUP = -1


@dataclass(frozen=True)
class DwaSample:
    """One image seen by one teacher and labeled by people."""

    image_id: str
    group: int
    """Batch it was offered in: its teacher is that of the round before. -1 for calibration images."""
    features: Floats
    metrics: Floats
    losses: RealizedLoss
    is_random_pick: bool
    """Drawn uniformly, as calibration images are, and not chosen for its score."""


@dataclass(frozen=True)
class ReviewedImage:
    """What a teacher that had not been trained on an image found there, and what people found."""

    found: StoredDetections
    """Without those in crowd regions. Class indices and posteriors refer to today's ``classes``."""
    group: int
    """As in ``DwaSample``."""
    metrics: Floats
    boxes_xyxy: Floats  # (G, 4) px
    class_ids: NDArray[np.int64]  # (G,)
    is_random_pick: bool
    """Drawn uniformly from the candidates of its batch; calibration images are, from the whole pool."""
    num_candidates: int
    """Images that its batch was selected from; 0 for calibration images."""
    picked_by: str = ""
    """Strategy that it was taken from; empty for calibration images."""


def batch_samples(
    labels: Path, detections_at_selection: Path, classes: Sequence[str], history_batches: int, gamma: float
) -> list[DwaSample]:
    """Build one sample for each image that was offered in the newest batches and is labeled by now.

    Arguments and errors are those of ``reviewed_batch_images``; ``gamma`` is the exponent of the focal loss,
    docs/method.md#eq-8.
    """
    reviewed = reviewed_batch_images(labels, detections_at_selection, classes, history_batches)
    return [_dwa_sample(image, classes, gamma) for image in reviewed]


def reviewed_batch_images(
    labels: Path, detections_at_selection: Path, classes: Sequence[str], history_batches: int | None
) -> Iterator[ReviewedImage]:
    """Yield each image that was offered in the newest batches and is labeled by now.

    A label that came late or was changed is compared with the detections of the round in which the image was
    offered. Detections stored under another class list are translated to ``classes`` by name; an image is left out
    where that is impossible: the teacher predicted a class that is gone, or the label has a class that it did not know.

    Args:
        labels: folder of label batches.
        detections_at_selection: folder of the detections stored per batch, DETECTIONS_AT_SELECTION.
        classes: class names in the order of their indices.
        history_batches: number of batches, newest first, whose images count; None: all.

    Raises:
        UserError: a label batch or its stored detections are unreadable.
    """
    store = read_labels(labels)
    oldest_batch = 0 if history_batches is None else store.newest_batch - history_batches + 1
    labeled = {image_id: answer for image_id, answer in store.current.items() if answer.label.status != "skipped"}
    # A label that was checked is still that of the pick: the teacher that only offered it to be checked had seen it.
    picked_in = {image_id: answer.picked.offered_batch for image_id, answer in labeled.items()}
    for number in sorted({batch for batch in picked_in.values() if batch >= oldest_batch}):
        path = detections_at_selection / f"batch-{number:04d}.parquet"
        table = files.read_table(path, schemas.DETECTIONS_AT_SELECTION)
        stored_classes = _stored_classes(path, table)
        num_dropped = 0
        for stored, row in _frozen_rows(table):
            if picked_in.get(stored.image_id) != number:
                continue
            label = labeled[stored.image_id].label
            found = _translate_classes(stored, stored_classes, classes)
            if found is None or any(box.category not in stored_classes for box in label.boxes):
                num_dropped += 1
                continue
            marked = labeled_boxes(label, classes)
            yield ReviewedImage(
                outside_crowds(found, marked),
                number,
                metrics_of(row),
                marked.boxes_xyxy,
                marked.class_ids,
                row["is_random_pick"],
                row["num_candidates"],
                row["picked_by"] or "",
            )
        if num_dropped:
            _log.warning("%s: samples left out because the class list changed: %d", path.name, num_dropped)


def _stored_classes(path: Path, table: pa.Table) -> list[str]:
    names = schemas.stored_class_names(table.schema)
    if names is None and table.num_rows:
        raise UserError(path, "the class names are missing from the file's metadata", "Run: dvc checkout")
    return names or []


def _translate_classes(
    found: StoredDetections, stored_classes: Sequence[str], classes: Sequence[str]
) -> StoredDetections | None:
    """Reorder class indices and posteriors to ``classes``; None where a predicted class is not among them.

    The probability of a class that is gone goes to background: it says that the box shows none of today's classes.
    """
    if list(stored_classes) == list(classes):
        return found
    if any(stored_classes[index] not in classes for index in found.class_ids):
        return None
    stored_NK = found.class_probs.reshape(len(found.scores), len(stored_classes) + 1)
    column_of = [classes.index(name) if name in classes else len(classes) for name in stored_classes]
    class_probs_NK = np.zeros((len(found.scores), len(classes) + 1), dtype=np.float32)
    for stored_column, column in enumerate([*column_of, len(classes)]):
        class_probs_NK[:, column] += stored_NK[:, stored_column]
    class_ids = np.array([column_of[index] for index in found.class_ids], dtype=np.int64)
    return replace(found, class_ids=class_ids, class_probs=class_probs_NK)


def calibration_samples(
    calibration: Path, detections: Path, scores: Path, classes: Sequence[str], gamma: float
) -> list[DwaSample]:
    """Build the samples of the calibration images with the current teacher."""
    rows = files.read_table(scores, schemas.SCORES, columns=["image_id", *schemas.ALL_METRICS]).to_pylist()
    metrics = {row["image_id"]: metrics_of(row) for row in rows}
    reviewed = reviewed_calibration_images(calibration, detections)
    return [_dwa_sample(replace(image, metrics=metrics[image.found.image_id]), classes, gamma) for image in reviewed]


def reviewed_calibration_images(calibration: Path, detections: Path) -> Iterator[ReviewedImage]:
    """Yield the calibration images with the detections of the current teacher; their metrics are left at 0."""
    truth = {row["image_id"]: row for row in files.read_table(calibration, schemas.ANNOTATED).to_pylist()}
    for found in read_detections(detections, list(truth)):
        marked = marked_boxes(truth[found.image_id])
        yield ReviewedImage(
            outside_crowds(found, marked),
            CALIBRATION_GROUP,
            np.zeros(len(schemas.ALL_METRICS)),
            marked.boxes_xyxy,
            marked.class_ids,
            True,
            0,
        )


def metrics_of(row: dict[str, Any]) -> Floats:
    """Return the normalized metrics of a row in the order of ``schemas.ALL_METRICS``, (M,); 0 for an unmeasured one."""
    return np.array([row[name] or 0.0 for name in schemas.ALL_METRICS], dtype=np.float64)


def _frozen_rows(table: pa.Table) -> Iterator[tuple[StoredDetections, dict[str, Any]]]:
    own_columns = [name for name in schemas.DETECTIONS_AT_SELECTION.names if name not in schemas.DETECTIONS.names]
    yield from zip(detections_from_table(table), table.select(own_columns).to_pylist(), strict=True)


def realized_loss_of(image: ReviewedImage, num_classes: int, gamma: float) -> RealizedLoss:
    """Compute the realized loss of the image's teacher (docs/method.md#eq-11)."""
    found = image.found
    posteriors = found.class_probs.reshape(len(found.scores), num_classes + 1)
    return realized_loss(found.boxes_xyxy, found.scores, posteriors, image.boxes_xyxy, image.class_ids, gamma)


def _dwa_sample(image: ReviewedImage, classes: Sequence[str], gamma: float) -> DwaSample:
    found = image.found
    posteriors = found.class_probs.reshape(len(found.scores), len(classes) + 1)
    metrics_3 = image.metrics[: len(schemas.METRICS)]  # the network reads the metrics of detections
    features = image_features(found.boxes_xyxy, found.scores, posteriors, metrics_3, len(classes))
    losses = realized_loss_of(image, len(classes), gamma)
    return DwaSample(found.image_id, image.group, features, image.metrics, losses, image.is_random_pick)


def all_samples(workspace: Workspace, classes: Sequence[str], history_batches: int, gamma: float) -> list[DwaSample]:
    """Build the samples of the window's batches and of the calibration set."""
    return batch_samples(
        workspace.labels, workspace.detections_at_selection, classes, history_batches, gamma
    ) + calibration_samples(
        workspace.derived("assemble") / "calibration.parquet",
        workspace.derived("infer"),
        workspace.derived("score") / "calibration.parquet",
        classes,
        gamma,
    )
