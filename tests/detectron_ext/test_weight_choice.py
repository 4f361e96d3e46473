"""The choice among rules: planted truths are found, and nothing is learned where there is nothing to learn."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from detectron_ext.dwa import DwaConfig, DwaSamples, metric_weights
from detectron_ext.ranking import Correlations
from detectron_ext.weight_choice import WeightChoice, assign_folds, choose_simplest, choose_weights
from tests.detectron_ext.test_dwa import CONFIG as SMALL

NAMES = ("confidence", "entropy", "overlap")
CONFIG = DwaConfig(
    hidden_units=16,
    epochs=200,
    learning_rate=0.01,
    weight_decay=0.01,
    weight_variance_penalties=(1000.0, 100.0, 10.0),
    prior_penalty=5.0,
    allow_negative_weights=False,
    cv_folds=5,
    min_gain_se=1.0,
    prior_rule="equal",
    min_random_samples=40,
    seed=7,
)
"""As in params.yaml."""


def make_samples(count: int, seed: int, rule: str, noise: float = 0.05, num_teachers: int = 1) -> DwaSamples:
    """21 features, of which the first three are the metrics; the loss follows ``rule``."""
    rng = np.random.default_rng(seed)
    metrics, features = rng.random((count, 3)), rng.normal(size=(count, 21))
    features[:, :3] = metrics
    clean = {
        "per image": np.where(features[:, 5] > 0, metrics[:, 1], metrics[:, 2]),
        "equal": metrics.mean(axis=1),
        "two metrics": metrics[:, 1] + metrics[:, 2],
        "one backwards": metrics[:, 1] + metrics[:, 2] - metrics[:, 0],
    }[rule]
    return DwaSamples(
        [f"{number:016x}" for number in range(count)],
        np.arange(count) % num_teachers,
        features,
        metrics,
        clean + noise * rng.normal(size=count),
        np.zeros(count, dtype=bool),
    )


def choose(samples: DwaSamples, config: DwaConfig = CONFIG) -> WeightChoice:
    choice = choose_weights(samples, samples.features, NAMES, config)
    assert choice is not None
    return choice


def pool_correlation(weights: np.ndarray, pool: DwaSamples) -> float:
    return float(stats.spearmanr((weights * pool.metrics).sum(axis=1), pool.loss).statistic)


@pytest.mark.parametrize("count", [200, 1000])
def test_a_rule_that_differs_from_image_to_image_is_found(count: int) -> None:
    """For half of the images the loss is the entropy, for the others the overlap; one feature says which."""
    pool = make_samples(2000, 99, "per image")
    choice = choose(make_samples(count, 0, "per image"))
    assert (choice.used, choice.complexity[:9]) == ("learned", "per_image")
    reached = pool_correlation(choice.ensemble.weights(pool.features), pool)
    best_common = max(
        pool_correlation(np.array([0.0, share, 1 - share]), pool) for share in np.linspace(0, 1, 11).tolist()
    )
    assert reached > best_common + 0.1
    if count == 1000:
        switched = (pool.features[:, 5] > 0).astype(float)
        reachable = pool_correlation(np.stack([0 * switched, switched, 1 - switched], axis=1), pool)
        assert reached >= 0.90 * reachable


def test_equal_weights_as_the_truth_are_left_alone() -> None:
    """In at most 1 of 20 draws of 44 images."""
    used = [choose(make_samples(44, seed, "equal", noise=0.15)).used for seed in range(20)]
    assert used.count("learned") <= 1
    assert used.count("equal") >= 18


def test_a_mixture_for_all_images_is_learned_and_no_more() -> None:
    choice = choose(make_samples(120, 1, "two metrics"))
    assert choice.used == "learned"
    assert choice.best_simple == "equal"
    weights = choice.ensemble.weights(make_samples(50, 2, "two metrics").features)
    assert weights.mean(axis=0) == pytest.approx([0, 0.5, 0.5], abs=0.08)


def test_a_metric_that_ranks_backwards_gets_no_positive_weight() -> None:
    samples = make_samples(150, 3, "one backwards")
    choice = choose(samples)
    assert choice.used == "learned"
    assert choice.candidate("confidence").spearman < 0
    assert choice.ensemble.weights(samples.features)[:, 0].mean() <= 0.02


def test_a_signed_mixture_gives_it_a_negative_weight_and_ranks_better() -> None:
    samples, pool = make_samples(150, 3, "one backwards"), make_samples(1000, 4, "one backwards")
    signed = choose(samples, replace(CONFIG, allow_negative_weights=True))
    assert signed.used == "learned"
    weights = metric_weights(signed.ensemble.weights(pool.features), 3)
    assert weights.mean(axis=0) == pytest.approx([-1 / 3, 1 / 3, 1 / 3], abs=0.1)
    assert pool_correlation(weights, pool) > 0.95
    assert [candidate.name for candidate in signed.candidates][:7] == [
        "equal", "confidence", "entropy", "overlap", "-confidence", "-entropy", "-overlap",
    ]  # fmt: skip


def test_held_out_weights_never_saw_their_own_sample() -> None:
    """Neither the networks nor the choice of their complexity."""
    samples = make_samples(40, 5, "two metrics")
    changed = samples.loss.copy()
    changed[0] = 100.0
    first, second = choose(samples, SMALL), choose(replace(samples, loss=changed), SMALL)
    fold = assign_folds(samples.image_ids, SMALL.cv_folds, SMALL.seed)
    same_fold = fold == fold[0]
    np.testing.assert_array_equal(first.held_out_weights[same_fold], second.held_out_weights[same_fold])
    assert not np.array_equal(first.held_out_weights[~same_fold], second.held_out_weights[~same_fold])


def test_the_figures_of_simple_rules_are_spearmans() -> None:
    samples = make_samples(40, 6, "two metrics")
    choice = choose(samples, SMALL)
    assert choice.candidate("equal").spearman == pytest.approx(
        stats.spearmanr(samples.metrics.mean(axis=1), samples.loss).statistic
    )
    assert choice.candidate("overlap").spearman == pytest.approx(
        stats.spearmanr(samples.metrics[:, 2], samples.loss).statistic
    )
    held_out = (choice.held_out_weights * samples.metrics).sum(axis=1)
    assert choice.candidate("learned").spearman == pytest.approx(stats.spearmanr(held_out, samples.loss).statistic)


def test_rules_are_compared_on_uniform_draws_where_there_are_enough() -> None:
    """The chosen images all have a high entropy: among them the entropy says nothing, over the pool it says all."""
    drawn, chosen = make_samples(80, 8, "equal"), make_samples(200, 9, "equal")
    chosen.metrics[:, 1] = 0.9 + 0.1 * chosen.metrics[:, 1]
    both = DwaSamples(
        [f"{number:016x}" for number in range(280)],
        np.repeat([0, 1], [80, 200]),
        np.concatenate([drawn.features, chosen.features]),
        np.concatenate([drawn.metrics, chosen.metrics]),
        np.concatenate([drawn.metrics[:, 1], chosen.metrics[:, 1] + 0.5 * chosen.metrics[:, 0]]),
        np.repeat([True, False], [80, 200]),
    )
    choice = choose(both, SMALL)
    assert choice.used == "entropy"
    assert choice.candidate("entropy").spearman == pytest.approx(1)
    assert choice.is_evaluated.tolist() == both.is_random.tolist()
    on_all = choose(both, replace(SMALL, min_random_samples=81))
    assert on_all.is_evaluated.all()
    assert on_all.candidate("entropy").spearman < 0.8


def make_correlations(values: list[float], spread: list[float]) -> Correlations:
    """Two blocks that move each rule by its spread: the standard error of a lead is the difference of spreads."""
    moves = np.array([[-1.0], [1.0]]) * np.array(spread)
    return Correlations(np.array(values), np.array(values) + moves)


@pytest.mark.parametrize(
    ("values", "margin", "expected"),
    [
        ([0.5, 0.3, 0.55], 1.0, 0),  # 0.05 ahead, standard error 0.1
        ([0.5, 0.3, 0.65], 1.0, 2),
        ([0.5, 0.62, 0.65], 1.0, 1),  # the simplest that the best does not beat
        ([0.5, 0.3, 0.55], 0.0, 2),
        ([0.5, 0.3, 0.5], 0.0, 0),
    ],
)
def test_the_one_standard_error_rule(values: list[float], margin: float, expected: int) -> None:
    found = make_correlations(values, [0.0, 0.0, 0.1])
    assert found.standard_error(2, 0) == pytest.approx(0.1)
    assert choose_simplest(found, (0, 1, 2), margin) == expected


def test_equal_losses_allow_no_choice() -> None:
    samples = replace(make_samples(20, 7, "equal"), loss=np.ones(20))
    assert choose_weights(samples, samples.features, NAMES, SMALL) is None


def test_the_same_image_stays_in_one_fold() -> None:
    ids = [f"{number:016x}" for number in range(10)] * 2
    fold = assign_folds(ids, 4, 0)
    assert (fold[:10] == fold[10:]).all()
    assert np.bincount(fold).min() >= 4
