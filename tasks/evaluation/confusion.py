"""Count which class is taken for which: a confusion matrix of detections, with background as one more class."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectron_ext.detection_loss import counts_as_detection, match_detections
from tasks.data.annotations import marked_boxes
from tasks.evaluation.coco_matching import Integers


def confusion_matrix(truth: pa.Table, predictions: pa.Table, num_classes: int, *, score_threshold: float) -> Integers:
    """Match detections with objects whatever their class, greedy by score at IoU 0.5, and count the pairs of classes.

    Args:
        truth: schemas.ANNOTATED; crowds are left out, and so are detections on them.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids.
        num_classes: K.
        score_threshold: detections below it are left out.

    Returns:
        (K + 1, K + 1): true class by predicted class; the last row counts detections of nothing, the last column
        objects that were missed.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for true_class, predicted_class in _pairs(truth, predictions, num_classes, score_threshold):
        np.add.at(counts, (true_class, predicted_class), 1)
    return counts


def _pairs(
    truth: pa.Table, predictions: pa.Table, num_classes: int, score_threshold: float
) -> Iterator[tuple[Integers, Integers]]:
    """Yield true and predicted classes of each image; K where there is no partner."""
    row_of = {image_id: row for row, image_id in enumerate(predictions["image_id"].to_pylist())}
    for row in truth.to_pylist():
        marked = marked_boxes(row)
        position = row_of.get(row["image_id"])
        found = predictions.slice(position, 1) if position is not None else predictions.slice(0, 0)
        boxes = pc.list_flatten(found["boxes_xyxy"]).to_numpy().reshape(-1, 4).astype(np.float64)
        scores, class_ids = (pc.list_flatten(found[name]).to_numpy() for name in ("scores", "class_ids"))
        kept = (scores >= score_threshold) & counts_as_detection(
            boxes, class_ids, marked.boxes_xyxy, marked.crowd_xyxy, marked.crowd_class_ids
        )
        matched = match_detections(boxes[kept], scores[kept], marked.boxes_xyxy)
        true_of_detection = np.where(matched >= 0, np.append(marked.class_ids, num_classes)[matched], num_classes)
        yield true_of_detection.astype(np.int64), class_ids[kept].astype(np.int64)
        missed = np.setdiff1d(np.arange(len(marked.class_ids)), matched)
        yield marked.class_ids[missed].astype(np.int64), np.full(len(missed), num_classes)
