"""Score every unlabeled image by confidence, entropy and overlap.

Reads  derived/assemble/calibration.parquet, derived/infer
Writes derived/score
Params classes, scoring
"""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from detectron_ext.uncertainty_metrics import impute_no_detections, normalize, uncertainty_metrics
from tasks.data import schemas
from tasks.data.detections import read_detections
from tasks.data.paths import Workspace
from tasks.params import load_stage_params
from tasks.params.stages import ScoringParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)


def score(params: ScoringParams, *, detections: Path, calibration: Path, out: Path) -> None:
    """Write scores.parquet (pool) and calibration.parquet (calibration images), both contracts.SCORES.

    The metrics of both are normalized over the pool and the calibration images together: the calibration
    images were drawn from the same pool at random.

    Args:
        params: how metrics are formed and normalized.
        detections: output of infer.
        calibration: contracts.ANNOTATED.
        out: output folder.
    """
    ids, counts, raw_rows = [], [], []
    for found in read_detections(detections):
        ids.append(found.image_id)
        counts.append(len(found.scores))
        raw_rows.append(
            uncertainty_metrics(
                found.boxes_xyxy,
                found.scores,
                found.class_probs,
                confidence_mode=params.confidence,
                entropy_mode=params.entropy,
            )
        )
    raw_P3 = np.array(raw_rows, dtype=np.float64).reshape(-1, 3)
    no_detections_P = np.array(counts, dtype=np.int64) == 0
    columns: dict[str, object] = {"image_id": ids, "num_boxes": counts, "has_no_detections": no_detections_P}
    for index, name in enumerate(schemas.METRICS):
        columns[f"{name}_raw"] = raw_P3[:, index]
        normalized = normalize(raw_P3[:, index], params.normalize)
        columns[name] = impute_no_detections(normalized, no_detections_P, params.no_detection_score)
    table = pa.Table.from_pydict({name: columns[name] for name in schemas.SCORES.names}, schemas.SCORES)
    calibration_ids = set(files.read_table(calibration, schemas.ANNOTATED)["image_id"].to_pylist())
    in_calibration = np.array([image_id in calibration_ids for image_id in ids], dtype=bool)
    files.write_table(out / "scores.parquet", table.filter(pa.array(~in_calibration)))
    files.write_table(out / "calibration.parquet", table.filter(pa.array(in_calibration)))
    log.info("score: %d images, %d without a detection", len(ids), int(no_detections_P.sum()))


def _body(workspace: Workspace) -> None:
    score(
        load_stage_params(workspace.params, "classes", "scoring").scoring,
        detections=workspace.derived("infer"),
        calibration=workspace.derived("assemble") / "calibration.parquet",
        out=workspace.derived("score"),
    )


def main() -> None:
    """``python -m tasks.score``."""
    stage_main("score", _body)


if __name__ == "__main__":
    main()
