from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from detectron_ext.detection_loss import realized_loss
from detectron_ext.image_features import feature_names
from tasks.data.schemas import ANNOTATED, DETECTIONS, PREVIOUS_UNCERTAINTY, SCORES, UNCERTAINTY
from tasks.params import StageParams
from tasks.storage import files
from tasks.study.pool_spearman import POOL_IMAGES, pool_images, pool_spearman

CLASSES = ["a", "b"]
GAMMA = 1.5
IMAGES = 8
PARAMS = cast(StageParams, SimpleNamespace(classes=CLASSES, dwa=SimpleNamespace(focal_gamma=GAMMA)))


def write_pool(
    folder: Path, *, scored: int = IMAGES, values: Sequence[float] | None = None
) -> tuple[dict[str, Path], list[dict[str, Any]], list[float]]:
    """One detection and one true box an image; the metrics are drawn. Image 99 is a calibration image."""
    rng = np.random.default_rng(0)
    found, scores, truth, weights = [], [], [], []
    for number in range(scored):
        name, p = f"{number:02d}", float(rng.uniform(0.4, 0.95))
        box = [1.0, 1.0, 9.0, 9.0] if number % 3 else [20.0, 20.0, 28.0, 28.0]  # every third one misses
        found.append({"image_id": name, "boxes_xyxy": box, "scores": [p], "class_ids": [number % 2]})
        found[-1]["class_probs"] = [0.0, 0.0, 1 - p]
        found[-1]["class_probs"][number % 2] = p
        metrics = dict(zip(("confidence", "entropy", "overlap"), rng.uniform(size=3).tolist(), strict=True))
        raw = {f"{key}_raw": value for key, value in metrics.items()}
        scores.append({"image_id": name, "num_boxes": 1, **raw, **metrics, "has_no_detections": False})
        scores[-1]["value"] = None if values is None else values[number]
        truth.append({"image_id": name, "uri": "x", "width_px": 40, "height_px": 40, "batch": -1})
        truth[-1] |= {"boxes_xyxy": [1.0, 1.0, 9.0, 9.0], "class_ids": [0]}
        weights.append(
            {"image_id": name, **{f"w_{key}": 1 / 3 for key in metrics}, "uncertainty": float(rng.uniform())}
        )
    calibration = {**found[0], "image_id": "99"} if found else None
    rows = [
        {**row, "residual_mass": 0.25, "embedding": [0.0], "model_digest": "m"}
        for row in [*found, *([calibration] if calibration else [])]
    ]
    paths = {"oracle": folder / "oracle.parquet", "detections": folder / "infer"}
    paths |= {"scores": folder / "scores.parquet", "weights": folder / "weigh"}
    files.write_table(paths["detections"] / "shard-0000.parquet", pa.Table.from_pylist(rows, schema=DETECTIONS))
    files.write_table(paths["oracle"], pa.Table.from_pylist(truth, schema=ANNOTATED))
    files.write_table(paths["scores"], pa.Table.from_pylist(scores, schema=SCORES))
    files.write_table(paths["weights"] / "uncertainty.parquet", pa.Table.from_pylist(weights, schema=UNCERTAINTY))
    losses = [_loss(row) for row in rows[:scored]]
    return paths, [{**a, **b} for a, b in zip(scores, weights, strict=True)], losses


def _loss(row: dict[str, Any]) -> float:
    posteriors = np.array(row["class_probs"], dtype=np.float16).astype(np.float32).reshape(1, 3)
    box, scores = np.array(row["boxes_xyxy"], dtype=np.float32).reshape(1, 4), np.array(row["scores"])
    loss = realized_loss(box, scores, posteriors, np.array([[1.0, 1.0, 9.0, 9.0]]), np.array([0]), GAMMA)
    return float(loss.positive_K.sum() + loss.claimed_background_K.sum())


def test_the_correlations_are_spearmans_over_the_pool_alone(tmp_path: Path) -> None:
    paths, rows, losses = write_pool(tmp_path)
    measured = pool_spearman(PARAMS, **paths)
    assert measured["pool_images"] == IMAGES
    expected = {
        "chosen": [row["uncertainty"] for row in rows],
        "equal": [(row["confidence"] + row["entropy"] + row["overlap"]) / 3 for row in rows],
        **{name: [row[name] for row in rows] for name in ("confidence", "entropy", "overlap")},
    }
    for name, values in expected.items():
        assert measured[name] == pytest.approx(stats.spearmanr(values, losses).statistic, abs=1e-5)


def test_too_few_images_have_no_correlation(tmp_path: Path) -> None:
    paths, _, _ = write_pool(tmp_path, scored=2)
    measured = pool_spearman(PARAMS, **paths)
    assert measured == {"pool_images": 2} | dict.fromkeys(("chosen", "equal", "confidence", "entropy", "overlap"))


def test_an_exhausted_pool_is_no_error(tmp_path: Path) -> None:
    paths, _, _ = write_pool(tmp_path, scored=0)
    assert pool_spearman(PARAMS, **paths)["pool_images"] == 0


def test_the_learned_rule_is_measured_where_there_is_one(tmp_path: Path) -> None:
    paths, rows, losses = write_pool(tmp_path)
    learned = [{"image_id": row["image_id"], "uncertainty": number / 10} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(learned, schema=PREVIOUS_UNCERTAINTY)
    files.write_table(paths["weights"] / "learned_uncertainty.parquet", table)
    expected = stats.spearmanr([row["uncertainty"] for row in learned], losses).statistic
    assert pool_spearman(PARAMS, **paths)["learned"] == pytest.approx(expected, abs=1e-5)


def test_the_value_of_an_image_is_measured_where_it_is_known(tmp_path: Path) -> None:
    values = np.random.default_rng(3).uniform(size=IMAGES).tolist()
    paths, _, losses = write_pool(tmp_path / "known", values=values)
    assert pool_spearman(PARAMS, **paths)["value"] == pytest.approx(stats.spearmanr(values, losses).statistic, abs=1e-5)
    assert "value" not in pool_spearman(PARAMS, **write_pool(tmp_path / "unknown")[0])


def test_the_pool_is_kept_with_what_the_oracle_knows(tmp_path: Path) -> None:
    paths, rows, losses = write_pool(tmp_path)
    inputs = {name: paths[name] for name in ("oracle", "detections", "scores")}
    pool = pool_images(PARAMS, **inputs)
    assert pool.schema == POOL_IMAGES
    assert pool["image_id"].to_pylist() == [row["image_id"] for row in rows]
    assert pool["loss"].to_pylist() == pytest.approx(losses)
    assert pool["num_missed"].to_pylist() == [0 if number % 3 else 1 for number in range(IMAGES)]
    for name in ("confidence", "entropy", "overlap"):
        assert pool[name].to_pylist() == pytest.approx([row[name] for row in rows])
    assert {len(values) for values in pool["features"].to_pylist()} == {len(feature_names(CLASSES))}
