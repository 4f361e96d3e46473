"""Score and weigh on stored detections: cold start, fallback, the ablations, and that nothing is made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectron_ext.detection_loss import RealizedLoss
from detectron_ext.image_features import feature_names
from tasks.data import schemas
from tasks.data.dwa_samples import DwaSample
from tasks.params import StageParams, load_params
from tasks.score import score
from tasks.storage import files
from tasks.weigh import class_prior, weigh

REPOSITORY = Path(__file__).parents[2]
CLASSES = ["a", "b"]


def write_detections(folder: Path, images: int, calibration: int = 0, empty: int = 1) -> None:
    """Two shards of random detections; the last ``empty`` images have none."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(images + calibration):
        count = 0 if number >= images + calibration - empty else int(rng.integers(1, 6))
        corner = rng.uniform(0, 40, (count, 2))
        posteriors = rng.dirichlet(np.ones(3), count).reshape(count, 3)
        rows.append(
            {
                "image_id": f"{number:016x}",
                "boxes_xyxy": np.concatenate([corner, corner + 20], axis=1).ravel(),
                "scores": posteriors[:, :2].max(axis=1, initial=0),
                "class_ids": posteriors[:, :2].argmax(axis=1) if count else [],
                "class_probs": posteriors.astype(np.float16).ravel(),
                "embedding": np.zeros(4, dtype=np.float16),
                "model_digest": "f" * 64,
            }
        )
    half = len(rows) // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        files.write_table(folder / f"shard-{shard:04d}.parquet", pa.Table.from_pylist(part, schemas.DETECTIONS))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """An infer and a score folder: 30 pool images, the last without detections, no calibration images."""
    write_detections(tmp_path / "infer", 30)
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    params = load_params(REPOSITORY / "params.yaml").scoring
    score(
        params,
        num_classes=len(CLASSES),
        detections=tmp_path / "infer",
        calibration=tmp_path / "calibration.parquet",
        out=tmp_path / "score",
    )
    return tmp_path


def stage_params(**dwa: Any) -> StageParams:
    params = load_params(REPOSITORY / "params.yaml")
    changed = params.model_copy(update={"classes": CLASSES, "dwa": params.dwa.model_copy(update={"epochs": 60, **dwa})})
    return StageParams(changed, ("seed", "classes", "scoring", "dwa"))


def make_samples(count: int, driven_by: int, seed: int = 0) -> list[DwaSample]:
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        metrics = rng.random(3)
        features = np.concatenate([metrics, rng.normal(size=16)])
        loss = RealizedLoss(np.array([metrics[driven_by], 0.1]), np.array([1, 1]))
        samples.append(DwaSample(f"{number:016x}", -1, features, metrics, loss))
    return samples


def run_weigh(folder: Path, samples: list[DwaSample], **dwa: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    weigh(
        stage_params(**dwa),
        samples=samples,
        scores=folder / "score" / "scores.parquet",
        out=folder / "weigh",
    )
    document = json.loads((folder / "weigh" / "dwa.json").read_text())
    return document, files.read_table(folder / "weigh" / "uncertainty.parquet", schemas.UNCERTAINTY).to_pylist()


def test_scores_are_bounded_and_the_blind_image_gets_the_median(scored: Path) -> None:
    rows = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    assert len(rows) == 30
    for name in ("confidence", "entropy", "overlap"):
        values = [row[name] for row in rows]
        assert all(0 <= value <= 1 for value in values)
        assert rows[-1][name] == pytest.approx(np.median(values[:-1]))
    assert [row["has_no_detections"] for row in rows] == [False] * 29 + [True]


def test_calibration_images_are_scored_apart(tmp_path: Path) -> None:
    write_detections(tmp_path / "infer", 8, calibration=4)
    rows = [
        {
            "image_id": f"{n:016x}",
            "uri": "",
            "width_px": 64,
            "height_px": 64,
            "boxes_xyxy": [],
            "class_ids": [],
            "batch": -1,
        }
        for n in range(4)
    ]
    files.write_table(tmp_path / "calibration.parquet", pa.Table.from_pylist(rows, schemas.ANNOTATED))
    params = load_params(REPOSITORY / "params.yaml").scoring
    score(
        params,
        num_classes=len(CLASSES),
        detections=tmp_path / "infer",
        calibration=tmp_path / "calibration.parquet",
        out=tmp_path / "score",
    )
    pool = files.read_table(tmp_path / "score" / "scores.parquet", schemas.SCORES)["image_id"].to_pylist()
    own = files.read_table(tmp_path / "score" / "calibration.parquet", schemas.SCORES)["image_id"].to_pylist()
    assert own == [f"{n:016x}" for n in range(4)]
    assert not set(pool) & set(own)


@pytest.mark.parametrize("count", [0, 3])
def test_a_cold_start_weighs_equally_and_says_so(scored: Path, count: int) -> None:
    document, rows = run_weigh(scored, make_samples(count, 1))
    assert document["used"] == "equal"
    assert "cold start" in document["reason"]
    assert document["spearman_dwa"] is None
    metrics = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    for row, own in zip(rows, metrics, strict=True):
        assert row["uncertainty"] == pytest.approx((own["confidence"] + own["entropy"] + own["overlap"]) / 3)


def test_learned_weights_are_used_when_they_rank_better(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, driven_by=1))
    assert document["used"] == "learned"
    assert document["spearman_dwa"] > document["spearman_equal"]
    assert document["mean_weights"]["entropy"] > 0.6
    for row in rows:
        weights = (row["w_confidence"], row["w_entropy"], row["w_overlap"])
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1)


def test_learned_weights_come_with_what_moves_them(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, driven_by=1))
    drivers = document["feature_importance"]
    names = [found["feature"] for found in drivers["features"]]
    assert sorted(names) == sorted(feature_names(CLASSES))
    moved = [found["importance"] for found in drivers["features"]]
    assert moved == sorted(moved, reverse=True)
    mean = document["mean_weights"]
    apart = [sum(abs(row[f"w_{name}"] - mean[name]) for name in mean) / 2 for row in rows]
    assert drivers["std"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert drivers["std"] > 0


def test_weights_that_are_not_learned_have_no_drivers(scored: Path) -> None:
    assert run_weigh(scored, [])[0]["feature_importance"] is None
    assert run_weigh(scored, make_samples(40, 1), mode="entropy")[0]["feature_importance"] is None


def test_without_a_signal_it_falls_back_and_reports_both_figures(scored: Path) -> None:
    """Losses that are the plain mean of the metrics: nothing can rank them better than equal weights."""
    mean = [
        DwaSample(
            p.image_id, p.group, p.features, p.metrics, RealizedLoss(np.array([p.metrics.mean(), 0]), np.array([1, 1]))
        )
        for p in make_samples(40, driven_by=1)
    ]
    document, _ = run_weigh(scored, mean)
    assert document["used"] == "equal"
    assert "fallback" in document["reason"]
    assert document["spearman_equal"] == pytest.approx(1.0)
    assert document["spearman_dwa"] is not None


@pytest.mark.parametrize(
    ("mode", "expected"), [("entropy", (0, 1, 0)), ("equal", (1 / 3,) * 3), ("fixed", (0.2, 0.3, 0.5))]
)
def test_ablations_give_every_image_the_same_weights(scored: Path, mode: str, expected: tuple[float, ...]) -> None:
    document, rows = run_weigh(scored, make_samples(40, 1), mode=mode, fixed_weights=[0.2, 0.3, 0.5])
    assert document["used"] == mode
    for row in rows:
        assert (row["w_confidence"], row["w_entropy"], row["w_overlap"]) == pytest.approx(expected)


def test_active_teacher_counts_classes_instead_of_overlap(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, 1), mode="activeteacher")
    assert document["used"] == "activeteacher"
    scores = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    stored = [
        row
        for shard in (0, 1)
        for row in files.read_table(scored / "infer" / f"shard-{shard:04d}.parquet", schemas.DETECTIONS).to_pylist()
    ]
    classes = [len(set(row["class_ids"])) for row in stored]
    for row, own, distinct in zip(rows, scores, classes, strict=True):
        expected = (
            own["confidence_raw"] / max(s["confidence_raw"] for s in scores)
            + own["entropy_raw"] / max(s["entropy_raw"] for s in scores)
            + distinct / max(classes)
        ) / 3
        assert row["uncertainty"] == pytest.approx(expected)


def test_rounding_of_the_weights_never_lifts_the_uncertainty_above_1(scored: Path) -> None:
    """Images whose metrics are all 1 exist by design with no_detection_score: max; annotation tasks refuse more."""
    table = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES)
    for name in schemas.METRICS:
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(np.ones(len(table))))
    files.write_table(scored / "score" / "scores.parquet", table)
    for changes in ({"mode": "fixed", "fixed_weights": [0.3335, 0.3335, 0.3335]}, {"mode": "learned"}):
        document, rows = run_weigh(scored, make_samples(40, driven_by=1), **changes)
        assert document["used"] == changes["mode"]
        assert {row["uncertainty"] for row in rows} == {1.0}
        for row in rows:
            assert row["w_confidence"] + row["w_entropy"] + row["w_overlap"] == pytest.approx(1, abs=1e-12)


def test_weigh_is_deterministic(scored: Path) -> None:
    run_weigh(scored, make_samples(40, 1))
    first = (scored / "weigh" / "uncertainty.parquet").read_bytes()
    run_weigh(scored, make_samples(40, 1))
    assert (scored / "weigh" / "uncertainty.parquet").read_bytes() == first


def test_harder_classes_get_larger_bounded_weights() -> None:
    share = class_prior(np.array([0.1, 0.4, np.nan]), weight_max=3.0)
    assert share.sum() == pytest.approx(1)
    assert share[1] > share[2] > share[0]
    assert class_prior(np.array([np.nan, np.nan]), 3.0).tolist() == [0.5, 0.5]
    extreme = 2 * class_prior(np.array([1e-9, 1.0]), weight_max=3.0)
    assert extreme.max() / extreme.min() <= 9 + 1e-9
