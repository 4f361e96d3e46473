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

from detectron_ext.uncertainty_metrics import batched_uncertainty_metrics, impute_no_detections, normalize
from tasks.data import schemas
from tasks.data.detections import read_detection_batches
from tasks.data.paths import Workspace
from tasks.params import load_stage_params
from tasks.params.stages import ScoringParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)


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
        raw_metrics.append(
            batched_uncertainty_metrics(
                batch.boxes_xyxy,
                batch.scores,
                batch.class_probs,
                batch.num_boxes,
                confidence_mode=params.confidence,
                entropy_mode=params.entropy,
            )
        )
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
