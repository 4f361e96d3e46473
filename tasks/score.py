"""Score every unlabeled image by confidence, entropy and overlap.

Reads  derived/assemble/calibration.parquet, derived/infer
Writes derived/score
Params classes, scoring
"""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from detectron_ext.metrics import image_metrics, normalise, with_zero_detections
from tasks import contracts, files
from tasks.detections import detections_in
from tasks.entry import run_stage
from tasks.params import load
from tasks.paths import Workspace
from tasks.sections import ScoringParams

log = logging.getLogger(__name__)


def score(params: ScoringParams, *, detections: Path, calibration: Path, out: Path) -> None:
    """Write scores.parquet (pool) and calibration.parquet (calibration images), both contracts.SCORES.

    The metrics of both are normalised over the pool and the calibration images together: the calibration
    images were drawn from the same pool at random.

    Args:
        params: how metrics are formed and normalised.
        detections: output of infer.
        calibration: contracts.ANNOTATED.
        out: output folder.
    """
    ids, counts, raw_rows = [], [], []
    for found in detections_in(detections):
        ids.append(found.image_id)
        counts.append(len(found.scores))
        raw_rows.append(
            image_metrics(
                found.boxes_xyxy,
                found.scores,
                found.posteriors,
                confidence_mode=params.confidence,
                entropy_mode=params.entropy,
            )
        )
    raw_P3 = np.array(raw_rows, dtype=np.float64).reshape(-1, 3)
    zero_P = np.array(counts, dtype=np.int64) == 0
    columns: dict[str, object] = {"image_id": ids, "num_boxes": counts, "zero_detections": zero_P}
    for index, name in enumerate(contracts.METRICS):
        columns[f"{name}_raw"] = raw_P3[:, index]
        normalised = normalise(raw_P3[:, index], params.normalise)
        columns[name] = with_zero_detections(normalised, zero_P, params.zero_detection)
    table = pa.Table.from_pydict({name: columns[name] for name in contracts.SCORES.names}, contracts.SCORES)
    reserved = set(files.read_table(calibration, contracts.ANNOTATED)["image_id"].to_pylist())
    in_calibration = np.array([image_id in reserved for image_id in ids], dtype=bool)
    files.write_table(out / "scores.parquet", table.filter(pa.array(~in_calibration)))
    files.write_table(out / "calibration.parquet", table.filter(pa.array(in_calibration)))
    log.info("score: %d images, %d without a detection", len(ids), int(zero_P.sum()))


def _body(workspace: Workspace) -> None:
    score(
        load(workspace.params, "classes", "scoring").scoring,
        detections=workspace.derived("infer"),
        calibration=workspace.derived("assemble") / "calibration.parquet",
        out=workspace.derived("score"),
    )


def main() -> None:
    """``python -m tasks.score``."""
    run_stage("score", _body)


if __name__ == "__main__":
    main()
