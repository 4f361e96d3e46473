"""Score every unlabeled image by confidence, entropy and overlap, and summarize its detections for later stages.

Reads  data/labels, data/detections_at_selection, derived/assemble/calibration.parquet, derived/infer
Writes derived/score
Params seed, classes, scoring, dwa
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.box_error_model import box_features
from detectron_ext.image_features import detection_features
from detectron_ext.uncertainty_metrics import (
    batched_uncertainty_metrics,
    box_overlaps,
    estimate_undetected,
    impute_no_detections,
    normalize,
    posterior_entropy,
)
from tasks.data import schemas
from tasks.data.box_errors import ErrorModel, error_model_document, fit_error_model
from tasks.data.detections import DetectionBatch, read_detection_batches
from tasks.data.dwa_samples import reviewed_batch_images, reviewed_calibration_images
from tasks.data.paths import Workspace
from tasks.data.pool_error import pool_error_document
from tasks.params import StageParams, load_stage_params
from tasks.params.stages import ScoringParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
# Columns that need no other image of the pool.
_RAW_SCORES = pa.schema(
    [field for field in schemas.SCORES if field.name not in (*schemas.ALL_METRICS, "has_no_detections")]
)


def score(
    params: StageParams,
    *,
    detections: Path,
    calibration: Path,
    labels: Path,
    detections_at_selection: Path,
    out: Path,
) -> None:
    """Write scores.parquet (pool) and calibration.parquet (calibration images), box_errors.json, pool_error.json.

    Both tables are schemas.SCORES. The metrics of both are normalized over the pool and the calibration images
    together: the calibration images were drawn from the same pool at random. The pool's detections are read once, batch
    by batch; of an image only the numbers that are normalized stay in memory.

    Args:
        params: sections seed, classes, scoring, dwa.
        detections: output of infer.
        calibration: table of schemas.ANNOTATED.
        labels: folder of label batches.
        detections_at_selection: folder of the detections stored per batch.
        out: output folder.
    """
    dwa, num_classes = params.dwa, len(params.classes)
    calibration_images = list(reviewed_calibration_images(calibration, detections))
    images = [
        *reviewed_batch_images(labels, detections_at_selection, params.classes, dwa.history_batches),
        *calibration_images,
    ]
    model = fit_error_model(images, labels, params.classes, dwa.min_training_samples, dwa.class_weight_max)
    in_calibration = files.read_table(calibration, schemas.ANNOTATED, columns=["image_id"])["image_id"]
    batches = (_score_batch(batch, params.scoring, model, num_classes) for batch in read_detection_batches(detections))
    of_calibration = _write_scores(out / "scores.parquet", batches, in_calibration, params.scoring)
    files.write_table(out / "calibration.parquet", of_calibration)
    metrics_PM = np.column_stack([of_calibration[name].to_numpy() for name in schemas.ALL_METRICS])
    metrics_by_id = dict(zip(of_calibration["image_id"].to_pylist(), metrics_PM, strict=True))
    document = error_model_document(model, metrics_by_id, params.classes, dwa, params.seed)
    files.write_json(out / "box_errors.json", document)
    all_images = list(reviewed_batch_images(labels, detections_at_selection, params.classes, None))
    pool_error = pool_error_document(all_images, calibration_images, num_classes, dwa.focal_gamma)
    files.write_json(out / "pool_error.json", pool_error)
    log.info("value of an image: %s", document["reason"])


def _write_scores(
    path: Path, batches: Iterable[pa.Table], calibration_ids: pa.ChunkedArray, params: ScoringParams
) -> pa.Table:
    """Write the scores of the pool, and return those of the calibration images.

    What waits for the normalization, which needs all images, waits in a file next to ``path``.
    """
    of_calibration, start = [schemas.SCORES.empty_table()], 0
    wanted = calibration_ids.combine_chunks()
    with files.TableSpool(path, _RAW_SCORES) as spool:
        for batch in batches:
            spool.append(batch)
        columns = _normalized_columns(spool, params)
        with files.table_writer(path, schemas.SCORES) as append:
            for batch in spool.read():
                rows = slice(start, start + len(batch))
                start = rows.stop
                for name, values in columns.items():
                    batch = batch.append_column(name, pa.array(values[rows]))
                scores = batch.select(schemas.SCORES.names)
                in_calibration = pc.is_in(scores["image_id"], value_set=wanted)
                of_calibration.append(scores.filter(in_calibration))
                append(scores.filter(pc.invert(in_calibration)))
    log.info("score: %d images, %d without a detection", start, columns["has_no_detections"].sum())
    return pa.concat_tables(of_calibration)


def _normalized_columns(raw: files.TableSpool, params: ScoringParams) -> dict[str, NDArray[Any]]:
    """Return the columns of schemas.SCORES that need all images, by name, (P,) each."""
    num_boxes_P, expected_misses_P = raw.column("num_boxes"), raw.column("expected_misses")
    no_detections_P = num_boxes_P == 0
    columns: dict[str, NDArray[Any]] = {"has_no_detections": no_detections_P}
    modes = {"confidence": params.confidence, "entropy": params.entropy}
    for name in schemas.METRICS:
        raw_P = raw.column(f"{name}_raw")
        if params.no_detection_score == "estimate" and name in modes:
            raw_P = estimate_undetected(raw_P, num_boxes_P, expected_misses_P, modes[name])
        normalized_P = normalize(raw_P, params.normalize)
        columns[name] = impute_no_detections(normalized_P, no_detections_P, params.no_detection_score)
    columns["objectness_entropy"] = _normalized_objectness(raw.column("objectness_entropy_raw"), params)
    return columns


def _normalized_objectness(raw_P: NDArray[np.float64], params: ScoringParams) -> NDArray[np.float64]:
    """Return the metric that needs no detection, (P,); 0 where the stage ``infer`` did not measure it."""
    normalized_P = np.zeros(len(raw_P)) if np.isnan(raw_P).any() else normalize(raw_P, params.normalize)
    return np.asarray(normalized_P, dtype=np.float64)


def _score_batch(batch: DetectionBatch, params: ScoringParams, model: ErrorModel, num_classes: int) -> pa.Table:
    """Return the columns of schemas.SCORES that need no other image of the pool, a row for each image."""
    boxes_B4, scores_B, class_ids_B, num_boxes_P = batch.boxes_xyxy, batch.scores, batch.class_ids, batch.num_boxes
    probs_BK = batch.class_probs.astype(np.float32)  # NumPy computes with float16 far more slowly
    overlaps, entropy_B = box_overlaps(boxes_B4, num_boxes_P), posterior_entropy(probs_BK)
    metrics_P3 = batched_uncertainty_metrics(
        scores_B, entropy_B, overlaps, num_boxes_P, confidence_mode=params.confidence, entropy_mode=params.entropy
    )
    features_PD = detection_features(boxes_B4, scores_B, probs_BK, overlaps, num_boxes_P, num_classes)
    kind_B = np.repeat(np.arange(len(num_boxes_P)) * num_classes, num_boxes_P) + class_ids_B
    num_kinds = len(num_boxes_P) * num_classes
    expected_PK = np.bincount(kind_B, scores_B, num_kinds).reshape(-1, num_classes)
    has_class_PK = np.bincount(kind_B, minlength=num_kinds).reshape(-1, num_classes) > 0
    expected_P = expected_PK.sum(axis=1)
    mass_P2 = np.column_stack([batch.residual_mass, expected_P])
    value_P = None
    if model.boxes is not None:
        errors_BF = box_features(
            boxes_B4, scores_B, class_ids_B, probs_BK, entropy_B, batch.stability, overlaps, num_boxes_P, num_classes
        )
        value_P = model.boxes.image_values(errors_BF, class_ids_B, num_boxes_P, mass_P2, model.class_weight_K)
    columns: dict[str, Any] = {
        "image_id": batch.image_ids,
        "num_boxes": num_boxes_P,
        "num_distinct_classes": has_class_PK.sum(axis=1),
        "expected_boxes": expected_P,
        "expected_boxes_per_class": _list_column(expected_PK),
        "residual_mass": batch.residual_mass,
        "expected_misses": model.misses.expected_misses(mass_P2),
        "value": pa.nulls(len(num_boxes_P), pa.float64()) if value_P is None else value_P,
        "features": _list_column(features_PD),
        "objectness_entropy_raw": pa.array(batch.objectness_entropy, pa.float64(), from_pandas=True),
    }
    columns |= {f"{name}_raw": metrics_P3[:, index] for index, name in enumerate(schemas.METRICS)}
    return pa.table({name: columns[name] for name in _RAW_SCORES.names}, schema=_RAW_SCORES)


def _list_column(values_PD: NDArray[Any]) -> pa.Array:
    """Return the rows as lists of float32."""
    offsets = np.arange(len(values_PD) + 1, dtype=np.int32) * values_PD.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values_PD.astype(np.float32).ravel()))


def _body(workspace: Workspace) -> None:
    score(
        load_stage_params(workspace.params, "seed", "classes", "scoring", "dwa"),
        detections=workspace.derived("infer"),
        calibration=workspace.derived("assemble") / "calibration.parquet",
        labels=workspace.labels,
        detections_at_selection=workspace.detections_at_selection,
        out=workspace.derived("score"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("score", _body)


if __name__ == "__main__":
    main()
