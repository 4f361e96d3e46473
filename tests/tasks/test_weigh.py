"""Score and weigh on stored detections: cold start, fallback, the ablations, and that nothing is made up."""

import json
from collections.abc import Sequence
from dataclasses import replace
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
from tasks.runtime.errors import UserError
from tasks.score import score
from tasks.storage import files
from tasks.weigh import StoredColumns, weigh
from tests.tasks.data.test_label_store import make_label, write_batch

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
                "residual_mass": 0.25,
                "embedding": np.zeros(4, dtype=np.float16),
                "model_digest": "f" * 64,
            }
        )
    half = len(rows) // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        files.write_table(folder / f"shard-{shard:04d}.parquet", pa.Table.from_pylist(part, schemas.DETECTIONS))


def run_score(folder: Path) -> None:
    write_batch(folder / "labels", 0, make_label("seed", offered_batch=0))
    files.write_table(
        folder / "frozen" / "batch-0000.parquet",
        schemas.with_class_names(schemas.DETECTIONS_AT_SELECTION, CLASSES).empty_table(),
    )
    score(
        stage_params(),
        detections=folder / "infer",
        calibration=folder / "calibration.parquet",
        labels=folder / "labels",
        detections_at_selection=folder / "frozen",
        out=folder / "score",
    )


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """An infer and a score folder: 30 pool images, the last without detections, no calibration images."""
    write_detections(tmp_path / "infer", 30)
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    run_score(tmp_path)
    return tmp_path


def test_slices_of_stored_columns_are_those_of_the_whole(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, names = scored / "score" / "scores.parquet", ["confidence", "num_boxes", "features"]
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 7)
    run_score(scored)
    assert len(files.row_group_sizes(path, schemas.SCORES)) == 5
    rows = files.read_table(path, schemas.SCORES, columns=names).to_pylist()
    whole = np.array([[row["confidence"], row["num_boxes"], *row["features"]] for row in rows])
    stored = StoredColumns(path, names)
    for some in (slice(0), slice(5, 22), slice(26, 99), slice(None, None, 4), slice(None)):
        np.testing.assert_array_equal(stored[some], whole[some])


def stage_params(normalize: str = "quantile", **dwa: Any) -> StageParams:
    params = load_params(REPOSITORY / "params.yaml")
    dwa_params = params.dwa.model_copy(update={"epochs": 60, **dwa})
    scoring = params.scoring.model_copy(update={"normalize": normalize})
    changed = params.model_copy(update={"classes": CLASSES, "scoring": scoring, "dwa": dwa_params})
    return StageParams(changed, ("seed", "classes", "scoring", "dwa"))


def make_loss(missed: float) -> RealizedLoss:
    """Objects of class a were missed, those of b hardly; no claim was wrong."""
    return RealizedLoss(np.array([missed, 0.1]), np.array([1, 1]), np.zeros(2), np.array([1, 1]))


MIXED = (0.0, 0.5, 0.5)
ENTROPY = (0.0, 1.0, 0.0)


def make_samples(count: int, mixture: Sequence[float], seed: int = 0) -> list[DwaSample]:
    """Images whose loss is a mixture of their metrics."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        metrics = rng.random(3)
        features = np.concatenate([metrics, rng.normal(size=16)])
        loss = make_loss(float(metrics @ mixture))
        samples.append(DwaSample(f"{number:016x}", -1, features, np.append(metrics, 0.0), loss, is_random_pick=True))
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
    run_score(tmp_path)
    pool = files.read_table(tmp_path / "score" / "scores.parquet", schemas.SCORES)["image_id"].to_pylist()
    own = files.read_table(tmp_path / "score" / "calibration.parquet", schemas.SCORES)["image_id"].to_pylist()
    assert own == [f"{n:016x}" for n in range(4)]
    assert not set(pool) & set(own)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("prior", ["equal", "entropy", "overlap"])
def test_a_cold_start_uses_the_prior_rule_and_says_so(scored: Path, count: int, prior: str) -> None:
    document, rows = run_weigh(scored, make_samples(count, MIXED), prior_rule=prior)
    assert document["used"] == prior
    assert "cold start" in document["reason"]
    assert document["spearman_dwa"] is None
    metrics = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    for row, own in zip(rows, metrics, strict=True):
        mean = (own["confidence"] + own["entropy"] + own["overlap"]) / 3
        assert row["uncertainty"] == pytest.approx(mean if prior == "equal" else own[prior])


def test_learned_weights_are_used_when_they_rank_better(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, MIXED))
    assert document["used"] == "learned"
    assert document["spearman_dwa"] > document["spearman_equal"] > 0.5
    assert document["mean_weights"]["confidence"] < 0.1
    names = [candidate["name"] for candidate in document["candidates"]]
    assert names[:5] == ["equal", *schemas.METRICS, "common"]
    assert [candidate["name"] for candidate in document["candidates"] if candidate["chosen"]] == [
        document["complexity"],
        "learned",
    ]
    learned, best = document["candidates"][-1], document["candidates"][names.index(document["best_simple"])]
    assert learned["gain"] == pytest.approx(learned["spearman"] - best["spearman"], abs=2e-6)
    assert learned["gain"] > learned["gain_standard_error"] > 0
    for row in rows:
        weights = (row["w_confidence"], row["w_entropy"], row["w_overlap"])
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1)


def learned_uncertainty(folder: Path) -> list[float]:
    table = files.read_table(folder / "weigh" / "learned_uncertainty.parquet", schemas.PREVIOUS_UNCERTAINTY)
    values: list[float] = table["uncertainty"].to_pylist()
    return values


def test_the_learned_rule_is_kept_whether_it_is_chosen_or_not(scored: Path) -> None:
    """Where it is chosen, it is what is used; where equal weights win, it differs from them."""
    _, rows = run_weigh(scored, make_samples(40, MIXED))
    assert learned_uncertainty(scored) == [row["uncertainty"] for row in rows]
    samples = make_samples(40, MIXED)
    mean = [replace(p, losses=make_loss(p.metrics[:3].mean())) for p in samples]
    document, rows = run_weigh(scored, mean)
    assert document["used"] == "equal"
    assert learned_uncertainty(scored) != [row["uncertainty"] for row in rows]


def test_learned_weights_come_with_what_moves_them(scored: Path) -> None:
    """Of images with many boxes the loss is the entropy, of those with few the overlap."""
    samples = []
    for pair in make_samples(120, MIXED):
        log_boxes = np.log1p(1 + len(samples) % 5)
        features = np.concatenate([pair.metrics[:3], [log_boxes], np.zeros(15)])
        loss = make_loss(pair.metrics[1] if log_boxes > 1.3 else pair.metrics[2])
        samples.append(replace(pair, features=features, losses=loss))
    document, rows = run_weigh(scored, samples, epochs=200)
    assert document["complexity"].startswith("per_image_c=")
    assert document["feature_importance"]["features"][0]["feature"] == "log_boxes"
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
    assert run_weigh(scored, make_samples(40, MIXED), mode="entropy")[0]["feature_importance"] is None


def test_without_a_signal_it_falls_back_and_reports_both_figures(scored: Path) -> None:
    """Losses that are the plain mean of the metrics: nothing can rank them better than equal weights."""
    mean = [replace(p, losses=make_loss(p.metrics[:3].mean())) for p in make_samples(40, MIXED)]
    document, _ = run_weigh(scored, mean)
    assert document["used"] == "equal"
    assert "fallback" in document["reason"]
    assert document["spearman_equal"] == pytest.approx(1.0)
    assert document["spearman_dwa"] is not None


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("entropy", (0, 1, 0)),
        ("confidence", (1, 0, 0)),
        ("overlap", (0, 0, 1)),
        ("equal", (1 / 3,) * 3),
        ("fixed", (0.2, 0.3, 0.5)),
    ],
)
def test_ablations_give_every_image_the_same_weights(scored: Path, mode: str, expected: tuple[float, ...]) -> None:
    document, rows = run_weigh(scored, make_samples(40, MIXED), mode=mode, fixed_weights=[0.2, 0.3, 0.5])
    assert document["used"] == mode
    for row in rows:
        assert (row["w_confidence"], row["w_entropy"], row["w_overlap"]) == pytest.approx(expected)


def test_active_teacher_counts_classes_instead_of_overlap(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, MIXED), mode="activeteacher")
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
        document, rows = run_weigh(scored, make_samples(40, MIXED), **changes)
        assert document["used"] == changes["mode"]
        assert {row["uncertainty"] for row in rows} == {1.0}
        for row in rows:
            assert row["w_confidence"] + row["w_entropy"] + row["w_overlap"] == pytest.approx(1, abs=1e-12)


def test_weigh_is_deterministic(scored: Path) -> None:
    run_weigh(scored, make_samples(40, MIXED))
    first = (scored / "weigh" / "uncertainty.parquet").read_bytes()
    run_weigh(scored, make_samples(40, MIXED))
    assert (scored / "weigh" / "uncertainty.parquet").read_bytes() == first


def test_one_metric_is_used_where_it_beats_equal_weights_and_learning_adds_nothing(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, ENTROPY))
    assert (document["used"], document["best_simple"]) == ("entropy", "entropy")
    assert "fallback" in document["reason"]
    assert {(row["w_confidence"], row["w_entropy"], row["w_overlap"]) for row in rows} == {(0.0, 1.0, 0.0)}


def test_metrics_that_are_left_out_have_no_weight(scored: Path) -> None:
    document, rows = run_weigh(scored, make_samples(40, MIXED), metrics=["overlap", "entropy"])
    assert {row["w_confidence"] for row in rows} == {0.0}
    assert document["mean_weights"]["entropy"] == pytest.approx(0.5, abs=0.1)
    assert [candidate["name"] for candidate in document["candidates"]][:3] == ["equal", "overlap", "entropy"]


def test_a_signed_mixture_uses_a_metric_the_other_way_round(scored: Path) -> None:
    """Losses fall with the overlap: its complement counts, and U stays in [0, 1]."""
    samples = make_samples(60, (0.5, 0.0, -0.5))
    document, rows = run_weigh(scored, samples, allow_negative_weights=True, epochs=200)
    assert document["used"] == "learned"
    assert document["mean_weights"]["overlap"] < -0.3
    assert document["mean_weights"]["confidence"] > 0.3
    scores = files.read_table(scored / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    for row, own in zip(rows, scores, strict=True):
        assert 0 <= row["uncertainty"] <= 1
        signed = sum(row[f"w_{name}"] * own[name] for name in schemas.METRICS)
        assert signed <= row["uncertainty"] <= signed + 1  # the complements add a share of 1 that weights do not show


def test_a_signed_mixture_needs_metrics_on_the_unit_interval(scored: Path) -> None:
    changed = stage_params(normalize="none", allow_negative_weights=True)
    with pytest.raises(UserError, match="allow_negative_weights is true with scoring"):
        weigh(changed, samples=[], scores=scored, out=scored)


def test_class_weights_are_learned_in_mode_learned_alone(scored: Path) -> None:
    """Class a was missed far more than b: its objects count for more; the claims were all right."""
    run_weigh(scored, make_samples(40, MIXED))
    weights = files.read_json(scored / "weigh" / "class_weights.json")
    assert weights["positive"]["a"] > 1.2 > 0.8 > weights["positive"]["b"]
    assert weights["claimed_background"] == {"a": 1.0, "b": 1.0}
    for changes in ({"mode": "equal"}, {"mode": "activeteacher"}, {"class_weights": "uniform"}):
        document, _ = run_weigh(scored, make_samples(40, MIXED), **changes)
        ones = {"a": 1.0, "b": 1.0}
        assert document["class_weights"] == {"positive": ones, "claimed_background": ones}


def test_a_mixture_may_take_the_entropy_of_objectness(scored: Path) -> None:
    """Losses that follow the fourth metric alone: the choice finds it, and it is the uncertainty."""
    path = scored / "score" / "scores.parquet"
    table = files.read_table(path, schemas.SCORES)
    assert {value.as_py() for value in table["objectness_entropy"]} == {0.0}
    doubt = np.linspace(0, 1, len(table))
    column = table.schema.get_field_index("objectness_entropy")
    files.write_table(path, table.set_column(column, "objectness_entropy", pa.array(doubt)))
    rng = np.random.default_rng(8)
    samples = [replace(p, metrics=np.append(p.metrics[:3], rng.random())) for p in make_samples(40, MIXED)]
    samples = [replace(p, losses=make_loss(float(p.metrics[3]))) for p in samples]
    four = {"metrics": ["confidence", "entropy", "overlap", "objectness_entropy"], "fixed_weights": [0.25] * 4}
    document, rows = run_weigh(scored, samples, **four, epochs=5)
    assert document["spearman_by_metric"]["objectness_entropy"] == pytest.approx(1)
    assert document["used"] == "objectness_entropy"
    assert [row["w_objectness_entropy"] for row in rows] == [1.0] * len(rows)
    np.testing.assert_allclose([row["uncertainty"] for row in rows], doubt, atol=1e-6)
    assert "objectness_entropy" not in run_weigh(scored, samples, mode="equal")[0]["mean_weights"]
