"""The replay on planted pools: the rules' figures are Spearman correlations, and the choice is the stage's own."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from detectron_ext.dwa import DwaSamples
from tasks.params import load_params
from tasks.storage import files
from tasks.study import ranking_replay
from tasks.study.pool_spearman import POOL_IMAGES
from tasks.weigh import PoolFeatures, decide_weights

DWA = load_params(Path(__file__).parents[3] / "params.yaml").dwa.model_copy(
    update={"epochs": 20, "hidden_units": 4, "weight_variance_penalties": [10.0]}
)

PRIORS = ("equal", "confidence", "entropy", "overlap")


def make_pool(count: int, *, noise: float = 0.1, seed: int = 0) -> pa.Table:
    """Entropy ranks the losses; confidence and overlap are noise."""
    rng = np.random.default_rng(seed)
    metrics = rng.random((count, 3))
    features = np.concatenate([metrics, rng.normal(size=(count, 4))], axis=1)
    columns = {name: metrics[:, index] for index, name in enumerate(("confidence", "entropy", "overlap"))}
    return pa.table(
        {
            "image_id": [f"{number:016x}" for number in range(count)],
            **columns,
            "features": features.astype(np.float32).tolist(),
            "loss": metrics[:, 1] + noise * rng.normal(size=count),
            "num_missed": np.zeros(count, dtype=np.int32),
        },
        schema=POOL_IMAGES,
    )


def test_rules_are_correlated_over_the_images_without_a_label() -> None:
    pool = make_pool(80)
    rows = list(ranking_replay.replay_pool(pool, DWA, PRIORS, seed=3, sizes=(20,), num_draws=1))
    by_rule = {row["rule"]: row["spearman"] for row in rows}
    drawn = np.random.default_rng([3, 20, 0]).permutation(80)[:20]
    rest = np.setdiff1d(np.arange(80), drawn)
    entropy, loss = pool["entropy"].to_numpy()[rest], pool["loss"].to_numpy()[rest]
    assert by_rule["entropy"] == pytest.approx(stats.spearmanr(entropy, loss).statistic)
    assert by_rule["chosen|entropy"] == by_rule["entropy"]
    assert by_rule["chosen|equal"] == by_rule["entropy"]  # 20 labels show it: the lead is large
    assert {row["num_labels"] for row in rows} == {20}


def test_under_the_cold_start_the_prior_rule_is_chosen() -> None:
    by_rule = {
        r["rule"]: r["spearman"] for r in ranking_replay.replay_pool(make_pool(60), DWA, PRIORS, seed=1, sizes=(10,))
    }
    for prior in PRIORS:
        assert by_rule[f"chosen|{prior}"] == by_rule[prior]
    assert not [rule for rule in by_rule if rule.startswith("learned")]


def test_sizes_that_leave_too_few_images_are_left_out() -> None:
    rows = list(ranking_replay.replay_pool(make_pool(60), DWA, PRIORS, seed=1, sizes=(10, 31), num_draws=1))
    assert {row["num_labels"] for row in rows} == {10}


def test_the_choice_is_that_of_the_stage() -> None:
    pool = make_pool(60, noise=0.6, seed=2)
    metrics = np.column_stack([pool[name].to_numpy() for name in ("confidence", "entropy", "overlap")])
    features = np.array(pool["features"].to_pylist())
    index = np.arange(24)
    samples = DwaSamples(
        pool["image_id"].to_pylist()[:24], 0 * index, features[:24], metrics[:24],
        pool["loss"].to_numpy()[:24], np.ones(24, dtype=bool),
    )  # fmt: skip
    rest = PoolFeatures(features[24:], metrics[24:], np.zeros((36, 3)))
    scores = ranking_replay.rule_scores(DWA, 0, samples, rest, PRIORS)
    for prior in PRIORS:
        decision = decide_weights(DWA.model_copy(update={"prior_rule": prior}), 0, samples, rest)
        np.testing.assert_array_equal(scores[f"chosen|{prior}"], decision.uncertainty)
        assert decision.choice is not None
        weights = decision.choice.ensemble.weights(rest.features)
        np.testing.assert_allclose(scores[f"learned|{prior}"], (weights * rest.metrics).sum(axis=1))


def test_the_table_compares_with_the_best_metric(tmp_path: Path) -> None:
    for seed in (1, 2):
        files.write_table(
            tmp_path / "parts" / f"seed-{seed}" / "random" / "round-0000.parquet", make_pool(60, seed=seed)
        )
    replay = ranking_replay.replay_folder(tmp_path / "parts", DWA, ["equal"])
    assert set(replay["seed"].to_pylist()) == {1, 2}
    found = ranking_replay.lead_over_best_metric(replay, "confidence")
    assert found["best"] == "entropy"
    values = {(row["rule"], row["seed"]): row["spearman"] for row in replay.to_pylist()}  # one size fits: 20 labels
    leads = [values["confidence", seed] - values["entropy", seed] for seed in (1, 2)]
    assert found["lead"] == pytest.approx(np.mean(leads))
    assert found["standard_error"] == pytest.approx(np.std(leads, ddof=1) / np.sqrt(2))
    text = ranking_replay.markdown(replay)
    assert "| rule | 20 labels |" in text
    assert "minus the best metric alone, `entropy`" in text
