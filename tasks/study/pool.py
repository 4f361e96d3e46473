"""How well a round's uncertainty finds the teacher's mistakes, over the whole unlabeled pool.

Only a study can say this: it reads the oracle, which no stage may. Run in a workspace whose ``derived/`` is up
to date: ``python -m tasks.study.pool``.
"""

from pathlib import Path

import numpy as np

from detectron_ext.metrics import Floats, spearman_within
from tasks import contracts, files
from tasks.entry import run_stage
from tasks.pairs import Pair, calibration_pairs
from tasks.params import Sections, load
from tasks.paths import Workspace


def pool_correlation(
    params: Sections, *, oracle: Path, detections: Path, scores: Path, weights: Path
) -> dict[str, float | int | None]:
    """Spearman correlation with the realised loss (all class weights 1, so that arms compare).

    Args:
        params: sections classes and dwa.
        oracle: contracts.ANNOTATED, true boxes of the pool.
        detections: output of infer.
        scores: contracts.SCORES of the pool.
        weights: contracts.WEIGHTS of the pool.

    Returns:
        ``pool_images``; correlation of the uncertainty that was used (``used``), of equal weights (``equal``)
        and of each metric alone; None where one side is constant or fewer than 3 images are left.
    """
    pairs = calibration_pairs(oracle, detections, scores, params.classes, params.dwa.focal_gamma)
    table = files.read_table(weights, contracts.WEIGHTS)
    used = dict(zip(table["image_id"].to_pylist(), table["uncertainty"].to_pylist(), strict=True))
    metrics_P3 = np.array([pair.metrics for pair in pairs], dtype=np.float64).reshape(-1, 3)
    candidates: dict[str, Floats] = {
        "used": np.array([used[pair.image_id] for pair in pairs], dtype=np.float64),
        "equal": metrics_P3.mean(axis=1),
        **{name: metrics_P3[:, index] for index, name in enumerate(contracts.METRICS)},
    }
    loss_P = _losses(pairs)
    return {"pool_images": len(pairs)} | {
        name: _rounded(spearman_within([(score_P, loss_P)])) for name, score_P in candidates.items()
    }


def _losses(pairs: list[Pair]) -> Floats:
    return np.array([float(pair.losses.total_K.sum()) for pair in pairs], dtype=np.float64)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _body(workspace: Workspace) -> None:
    measured = pool_correlation(
        load(workspace.params, "classes", "dwa"),
        oracle=workspace.oracle,
        detections=workspace.derived("infer"),
        scores=workspace.derived("score") / "scores.parquet",
        weights=workspace.derived("weigh") / "weights.parquet",
    )
    files.write_json(workspace.scratch("study") / "pool.json", measured)


def main() -> None:
    """``python -m tasks.study.pool``."""
    run_stage("study_pool", _body)


if __name__ == "__main__":
    main()
