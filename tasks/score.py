"""Score every unlabeled image by confidence, entropy and overlap.

Reads  derived/assemble/calibration.parquet, derived/infer
Writes derived/score
Params classes, scoring
"""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import impute_no_detections, normalize, posterior_entropy
from tasks.data import schemas
from tasks.data.detections import DetectionBatch, read_detection_batches
from tasks.data.paths import Workspace
from tasks.params import load_stage_params
from tasks.params.stages import ScoringParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)

_MAX_PAIRS_AT_ONCE = 2**16
"""Pairs of boxes in one array, 0.5 MiB each: the dozen arrays of the IoU then fit in a processor's cache."""


def score(params: ScoringParams, *, detections: Path, calibration: Path, out: Path) -> None:
    """Write scores.parquet (pool) and calibration.parquet (calibration images), both schemas.SCORES.

    The metrics of both are normalized over the pool and the calibration images together: the calibration
    images were drawn from the same pool at random.

    Args:
        params: how metrics are formed and normalized.
        detections: output of infer.
        calibration: table of schemas.ANNOTATED.
        out: output folder.
    """
    ids: list[str] = []
    counts: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    raw_metrics: list[NDArray[np.float64]] = [np.zeros((0, 3))]
    for batch in read_detection_batches(detections):
        ids += batch.image_ids
        counts.append(batch.num_boxes)
        raw_metrics.append(_raw_metrics(batch, params))
    counts_P, raw_P3 = np.concatenate(counts), np.concatenate(raw_metrics)
    no_detections_P = counts_P == 0
    columns: dict[str, object] = {"image_id": ids, "num_boxes": counts_P, "has_no_detections": no_detections_P}
    for index, name in enumerate(schemas.METRICS):
        columns[f"{name}_raw"] = raw_P3[:, index]
        normalized = normalize(raw_P3[:, index], params.normalize)
        columns[name] = impute_no_detections(normalized, no_detections_P, params.no_detection_score)
    table = pa.Table.from_pydict({name: columns[name] for name in schemas.SCORES.names}, schemas.SCORES)
    calibration_ids = files.read_table(calibration, schemas.ANNOTATED)["image_id"].combine_chunks()
    in_calibration = pc.is_in(table["image_id"], value_set=calibration_ids)
    files.write_table(out / "scores.parquet", table.filter(pc.invert(in_calibration)))
    files.write_table(out / "calibration.parquet", table.filter(in_calibration))
    log.info("score: %d images, %d without a detection", len(ids), int(no_detections_P.sum()))


def _raw_metrics(batch: DetectionBatch, params: ScoringParams) -> NDArray[np.float64]:
    """Return confidence, entropy and overlap of every image, (P, 3); 0 without a box (docs/method.md#metrics).

    The same as ``detectron_ext.uncertainty_metrics.uncertainty_metrics`` of each image, for all images at once.
    """
    num_images = len(batch.image_ids)
    image_of_box_B = np.repeat(np.arange(num_images), batch.num_boxes)

    def sum_by_image(values_B: NDArray[np.floating]) -> NDArray[np.float64]:
        sums_P = np.bincount(image_of_box_B, weights=values_B, minlength=num_images)
        return sums_P.astype(np.float64)  # integers where there is no box at all

    divisor_P = np.maximum(batch.num_boxes, 1)
    if params.confidence == "sum":
        confidence_P = sum_by_image(batch.scores)
    else:
        confidence_P = sum_by_image(1 - batch.scores) / divisor_P
    entropy_P = sum_by_image(posterior_entropy(batch.class_probs))
    if params.entropy == "mean":
        entropy_P /= divisor_P
    return np.stack([confidence_P, entropy_P, _overlap(batch.boxes_xyxy, batch.num_boxes)], axis=1)


def _overlap(boxes_B4: NDArray[np.float32], num_boxes_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU of all pairs of boxes of each image, (P,); 0 below 2 boxes (docs/method.md#eq-5)."""
    overlap_P = np.zeros(len(num_boxes_P))
    first_box_P = np.cumsum(num_boxes_P) - num_boxes_P
    for count in np.unique(num_boxes_P[num_boxes_P > 1]):  # images with equally many boxes form one dense array
        images = np.flatnonzero(num_boxes_P == count)
        step = max(1, _MAX_PAIRS_AT_ONCE // (count * (count - 1) // 2))
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            boxes_MN4 = boxes_B4[first_box_P[chunk][:, None] + np.arange(count)].astype(np.float64)
            overlap_P[chunk] = _mean_pairwise_iou(boxes_MN4)
    return overlap_P


def _mean_pairwise_iou(boxes_MN4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean IoU (docs/method.md#eq-4) over the N(N-1)/2 pairs of each of M images, (M,)."""
    first, second = np.triu_indices(boxes_MN4.shape[1], k=1)
    x1, y1, x2, y2 = np.ascontiguousarray(np.moveaxis(boxes_MN4, 2, 0))
    area = np.clip(x2 - x1, 0, None) * np.clip(y2 - y1, 0, None)
    width = np.minimum(x2[:, first], x2[:, second]) - np.maximum(x1[:, first], x1[:, second])
    height = np.minimum(y2[:, first], y2[:, second]) - np.maximum(y1[:, first], y1[:, second])
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    union = area[:, first] + area[:, second] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0).mean(axis=1))


def _body(workspace: Workspace) -> None:
    score(
        load_stage_params(workspace.params, "classes", "scoring").scoring,
        detections=workspace.derived("infer"),
        calibration=workspace.derived("assemble") / "calibration.parquet",
        out=workspace.derived("score"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("score", _body)


if __name__ == "__main__":
    main()
