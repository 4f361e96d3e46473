"""How well each rule finds the teacher's mistakes, over the whole unlabeled pool.

Only a study can say this: it reads the oracle, which no stage may. Run in a workspace whose ``derived/`` is up
to date: ``python -m tasks.study.pool_spearman``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from detectron_ext.uncertainty_metrics import Floats, grouped_spearman
from tasks.data import schemas
from tasks.data.dwa_samples import DwaSample, calibration_samples, reviewed_calibration_images
from tasks.data.paths import Workspace
from tasks.data.pool_error import num_missed
from tasks.params import StageParams, load_stage_params
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

POOL_IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        *((name, pa.float64()) for name in schemas.METRICS),
        ("features", pa.list_(pa.float32())),  # of the DWA network
        ("loss", pa.float64()),  # realized loss, all class weights 1
        ("num_missed", pa.int32()),  # true boxes without a detection
    ]
)
"""One row per image of the unlabeled pool."""


def pool_spearman(
    params: StageParams, *, oracle: Path, detections: Path, scores: Path, weights: Path
) -> dict[str, float | int | None]:
    """Spearman correlation with the realized loss (all class weights 1, so that arms compare).

    Args:
        params: sections classes and dwa.
        oracle: schemas.ANNOTATED, true boxes of the pool.
        detections: output of infer.
        scores: schemas.SCORES of the pool.
        weights: output of weigh.

    Returns:
        ``pool_images``; correlation of the uncertainty that was used (``chosen``), of equal weights (``equal``), of
        each metric alone and, where there are labels enough to learn from, of the learned rule (``learned``) and of the
        value of an image (``value``); None where one side is constant or fewer than 3 images are left.
    """
    samples = calibration_samples(oracle, detections, scores, params.classes, params.dwa.focal_gamma)
    metrics_PM = np.array([pair.metrics for pair in samples], dtype=np.float64).reshape(-1, len(schemas.ALL_METRICS))
    metrics_P3 = metrics_PM[:, : len(schemas.METRICS)]  # of detections: what all studies compare
    image_ids = [pair.image_id for pair in samples]
    candidates: dict[str, Floats] = {
        "chosen": _of_images(weights / "uncertainty.parquet", schemas.UNCERTAINTY, image_ids),
        "equal": metrics_P3.mean(axis=1),
        **{name: metrics_P3[:, index] for index, name in enumerate(schemas.METRICS)},
    }
    learned = weights / "learned_uncertainty.parquet"
    if learned.is_file():
        candidates["learned"] = _of_images(learned, schemas.PREVIOUS_UNCERTAINTY, image_ids)
    value_P = _of_images(scores, schemas.SCORES, image_ids, column="value")
    if not np.isnan(value_P).any():
        candidates["value"] = value_P
    loss_P = _losses(samples)
    return {"pool_images": len(samples)} | {
        name: _rounded(grouped_spearman([(score_P, loss_P)])) for name, score_P in candidates.items()
    }


def pool_images(params: StageParams, *, oracle: Path, detections: Path, scores: Path) -> pa.Table:
    """Return what a ranking rule may know of each pool image, and what the oracle knows: schemas of POOL_IMAGES.

    ``tasks.study.ranking_replay`` draws labels from it, so that rules can be compared without another training.

    Args:
        params: sections classes and dwa.
        oracle: schemas.ANNOTATED, true boxes of the pool.
        detections: output of infer.
        scores: schemas.SCORES of the pool.
    """
    samples = calibration_samples(oracle, detections, scores, params.classes, params.dwa.focal_gamma)
    missed = {image.found.image_id: num_missed(image) for image in reviewed_calibration_images(oracle, detections)}
    return pa.table(
        {
            "image_id": [pair.image_id for pair in samples],
            **{name: [pair.metrics[index] for pair in samples] for index, name in enumerate(schemas.METRICS)},
            "features": [pair.features.tolist() for pair in samples],
            "loss": _losses(samples),
            "num_missed": [missed[pair.image_id] for pair in samples],
        },
        schema=POOL_IMAGES,
    )


def _of_images(path: Path, schema: pa.Schema, image_ids: Sequence[str], column: str = "uncertainty") -> Floats:
    """One column of the images, in their order; NaN where it is null."""
    table = files.read_table(path, schema, columns=["image_id", column])
    known = dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True))
    return np.array([known[image_id] for image_id in image_ids], dtype=np.float64)


def _losses(samples: list[DwaSample]) -> Floats:
    return np.array(
        [float(pair.losses.positive_K.sum() + pair.losses.claimed_background_K.sum()) for pair in samples],
        dtype=np.float64,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "classes", "dwa")
    inputs = {
        "oracle": workspace.oracle,
        "detections": workspace.derived("infer"),
        "scores": workspace.derived("score") / "scores.parquet",
    }
    folder = workspace.scratch("study")
    files.write_table(folder / "pool.parquet", pool_images(params, **inputs))
    files.write_json(folder / "pool.json", pool_spearman(params, **inputs, weights=workspace.derived("weigh")))


def main() -> None:
    """``python -m tasks.study.pool_spearman``."""
    stage_main("study_pool", _body)


if __name__ == "__main__":
    main()
