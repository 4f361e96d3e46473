"""Score every unlabeled image by confidence, entropy and overlap, and summarize its detections for later stages.

Reads  derived/assemble/calibration.parquet, derived/infer
Writes derived/score
Params classes, scoring
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.image_features import detection_features
from detectron_ext.uncertainty_metrics import (
    batched_uncertainty_metrics,
    box_overlaps,
    impute_no_detections,
    normalize,
    sum_by_image,
)
from tasks.data import schemas
from tasks.data.detections import DetectionBatch, read_detection_batches
from tasks.data.paths import Workspace
from tasks.params import load_stage_params
from tasks.params.stages import ScoringParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
# Columns that need no other image of the pool.
_RAW_SCORES = pa.schema(
    [field for field in schemas.SCORES if field.name not in (*schemas.METRICS, "has_no_detections")]
)


def score(params: ScoringParams, *, num_classes: int, detections: Path, calibration: Path, out: Path) -> None:
    """Write scores.parquet (pool) and calibration.parquet (calibration images), both schemas.SCORES.

    The metrics of both are normalized over the pool and the calibration images together: the calibration
    images were drawn from the same pool at random. The detections are read once, batch by batch; nothing of the
    size of a box stays in memory.

    Args:
        params: how metrics are formed and normalized.
        num_classes: K.
        detections: output of infer.
        calibration: table of schemas.ANNOTATED.
        out: output folder.
    """
    parts = [_score_batch(batch, params, num_classes) for batch in read_detection_batches(detections)]
    table = pa.concat_tables([_RAW_SCORES.empty_table(), *parts])
    no_detections_P = pc.equal(table["num_boxes"], 0).to_numpy()
    table = table.append_column("has_no_detections", pa.array(no_detections_P))
    for name in schemas.METRICS:
        normalized_P = normalize(table[f"{name}_raw"].to_numpy(), params.normalize)
        imputed_P = impute_no_detections(normalized_P, no_detections_P, params.no_detection_score)
        table = table.append_column(name, pa.array(imputed_P))
    table = table.select(schemas.SCORES.names)
    calibration_ids = files.read_table(calibration, schemas.ANNOTATED, columns=["image_id"])[
        "image_id"
    ].combine_chunks()
    in_calibration = pc.is_in(table["image_id"], value_set=calibration_ids)
    files.write_table(out / "scores.parquet", table.filter(pc.invert(in_calibration)))
    files.write_table(out / "calibration.parquet", table.filter(in_calibration))
    log.info("score: %d images, %d without a detection", len(table), int(no_detections_P.sum()))


def _score_batch(batch: DetectionBatch, params: ScoringParams, num_classes: int) -> pa.Table:
    """Return the columns of schemas.SCORES that need no other image of the pool, a row for each image."""
    num_boxes_P = batch.num_boxes
    overlaps = box_overlaps(batch.boxes_xyxy, num_boxes_P)
    metrics_P3 = batched_uncertainty_metrics(
        batch.scores,
        batch.class_probs,
        overlaps,
        num_boxes_P,
        confidence_mode=params.confidence,
        entropy_mode=params.entropy,
    )
    features_PD = detection_features(
        batch.boxes_xyxy, batch.scores, batch.class_probs, overlaps, num_boxes_P, num_classes
    )
    claimed_BK = batch.class_ids[:, None] == np.arange(num_classes)
    expected_PK = sum_by_image(claimed_BK * batch.scores[:, None].astype(np.float64), num_boxes_P)
    columns: dict[str, Any] = {
        "image_id": batch.image_ids,
        "num_boxes": num_boxes_P,
        "num_distinct_classes": (sum_by_image(claimed_BK, num_boxes_P) > 0).sum(axis=1),
        "expected_boxes": expected_PK.sum(axis=1),
        "expected_boxes_per_class": _list_column(expected_PK),
        "features": _list_column(features_PD),
    }
    columns |= {f"{name}_raw": metrics_P3[:, index] for index, name in enumerate(schemas.METRICS)}
    return pa.table({name: columns[name] for name in _RAW_SCORES.names}, schema=_RAW_SCORES)


def _list_column(values_PD: NDArray[Any]) -> pa.Array:
    """Return the rows as lists of float32."""
    offsets = np.arange(len(values_PD) + 1, dtype=np.int32) * values_PD.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values_PD.astype(np.float32).ravel()))


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "classes", "scoring")
    score(
        params.scoring,
        num_classes=len(params.classes),
        detections=workspace.derived("infer"),
        calibration=workspace.derived("assemble") / "calibration.parquet",
        out=workspace.derived("score"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("score", _body)


if __name__ == "__main__":
    main()
