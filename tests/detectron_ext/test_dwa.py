"""The DWA network: bounds of its weights, what it learns, and that it cannot cheat."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron_ext.dwa import DwaConfig, DwaNetwork, DwaSamples, assign_folds, fit_dwa, ranking_loss

CONFIG = DwaConfig(
    hidden_units=8,
    epochs=150,
    learning_rate=0.02,
    weight_decay=0.01,
    weight_variance_penalty=3.0,
    uniform_prior_penalty=0.01,
    cv_folds=4,
    seed=3,
)


def make_samples(metric: int, count: int = 60, seed: int = 0, noise: float = 0.05) -> DwaSamples:
    """Pairs whose realised loss follows one of the three metrics."""
    rng = np.random.default_rng(seed)
    metrics = rng.random((count, 3))
    features = np.concatenate([metrics, rng.normal(size=(count, 4))], axis=1)
    loss = metrics[:, metric] + noise * rng.normal(size=count)
    return DwaSamples([f"{i:016x}" for i in range(count)], np.zeros(count, dtype=np.int64), features, metrics, loss)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 50))
def test_weights_are_positive_and_normalized(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    network = DwaNetwork(7, 4, 8)
    torch.nn.init.normal_(network.metric_head.weight)
    torch.nn.init.normal_(network.class_head.weight)
    metric, classes = network(scale * torch.randn(10, 7))
    assert (metric >= 0).all()
    torch.testing.assert_close(metric.sum(dim=1), torch.ones(10))
    torch.testing.assert_close(classes.mean(dim=1), torch.ones(10))


def test_a_new_network_weighs_equally() -> None:
    metric, classes = DwaNetwork(7, 4, 8)(torch.randn(5, 7))
    torch.testing.assert_close(metric, torch.full((5, 3), 1 / 3))
    torch.testing.assert_close(classes, torch.ones(5, 4))


def test_ranking_loss_is_the_written_out_sum() -> None:
    score, loss, group = torch.tensor([0.2, 0.8, 0.5]), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 1])
    # only 0 and 1 share a group; 0 is the harder one
    expected = np.log1p(np.exp(-(0.2 - 0.8) / 0.1))
    assert ranking_loss(score, loss, group).item() == np.float32(expected)


def test_ranking_loss_without_comparable_pairs_is_zero_with_a_gradient() -> None:
    score = torch.tensor([0.1, 0.9], requires_grad=True)
    loss = ranking_loss(score, torch.ones(2), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0


def test_it_finds_the_metric_that_matters() -> None:
    for metric in range(3):
        pairs = make_samples(metric)
        fit = fit_dwa(pairs, pairs.features, np.full(4, 0.25), CONFIG)
        assert fit.held_out_weights.mean(axis=0).argmax() == metric
        assert fit.spearman_dwa is not None
        assert fit.spearman_equal is not None
        assert fit.spearman_dwa > fit.spearman_equal + 0.1


def test_held_out_weights_never_saw_their_own_pair() -> None:
    pairs = make_samples(1)
    changed = pairs.loss.copy()
    changed[0] = 100.0
    other = DwaSamples(pairs.image_ids, pairs.group, pairs.features, pairs.metrics, changed)
    first = fit_dwa(pairs, pairs.features, np.full(4, 0.25), CONFIG)
    second = fit_dwa(other, pairs.features, np.full(4, 0.25), CONFIG)
    fold = assign_folds(pairs, CONFIG.cv_folds, CONFIG.seed)
    same_fold = fold == fold[0]
    np.testing.assert_array_equal(first.held_out_weights[same_fold], second.held_out_weights[same_fold])
    assert not np.array_equal(first.held_out_weights[~same_fold], second.held_out_weights[~same_fold])


def test_the_same_image_stays_in_one_fold() -> None:
    pairs = make_samples(0, count=20)
    twice = DwaSamples(pairs.image_ids[:10] * 2, pairs.group, pairs.features, pairs.metrics, pairs.loss)
    fold = assign_folds(twice, 4, 0)
    assert (fold[:10] == fold[10:]).all()


def test_the_class_head_is_pulled_to_the_harder_class() -> None:
    pairs = make_samples(0)
    fit = fit_dwa(pairs, pairs.features, np.array([0.1, 0.2, 0.3, 0.4]), CONFIG)
    classes = fit.ensemble.weights(pairs.features)[1].mean(axis=0)
    np.testing.assert_allclose(classes, [0.4, 0.8, 1.2, 1.6], atol=0.1)


def test_the_fit_is_seeded() -> None:
    pairs = make_samples(2)
    first, second = (fit_dwa(pairs, pairs.features, np.full(4, 0.25), CONFIG).held_out_weights for _ in range(2))
    np.testing.assert_array_equal(first, second)
