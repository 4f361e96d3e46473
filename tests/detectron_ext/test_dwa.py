"""The DWA networks: bounds of their weights, and the objective they are trained on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron_ext.dwa import (
    DwaConfig,
    DwaNetworks,
    equal_weights,
    fit_networks,
    mean_and_std,
    metric_weights,
    mixture_terms,
)
from detectron_ext.ranking import ranking_pairs

CONFIG = DwaConfig(
    hidden_units=8,
    epochs=120,
    learning_rate=0.02,
    weight_decay=0.01,
    weight_variance_penalties=(100.0, 10.0),
    prior_penalty=1.0,
    allow_negative_weights=False,
    cv_folds=4,
    min_gain_se=1.0,
    prior_rule="equal",
    min_random_samples=40,
    seed=3,
)
EQUAL = equal_weights(3, signed=False)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 50))
def test_weights_are_positive_and_normalized(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    networks = DwaNetworks(7, EQUAL, 8, [True, False], seed)
    torch.nn.init.normal_(networks.output_weight)
    weights_STB = networks(scale * torch.randn(10, 7))
    assert weights_STB.shape == (2, 3, 10)
    assert (weights_STB >= 0).all()
    torch.testing.assert_close(weights_STB.sum(dim=1), torch.ones(2, 10))


def test_new_networks_weigh_equally() -> None:
    weights_STB = DwaNetworks(7, EQUAL, 8, [True, True], seed=0)(torch.randn(5, 7))
    torch.testing.assert_close(weights_STB, torch.full((2, 3, 5), 1 / 3))


def test_a_new_signed_mixture_is_nearly_equal_weights() -> None:
    equal = equal_weights(3, signed=True)
    weights_BT = DwaNetworks(7, equal, 8, [True], seed=0)(torch.randn(5, 7))[0].T.detach().numpy()
    assert metric_weights(weights_BT, 3) == pytest.approx(1 / 3, abs=0.04)


def test_a_network_that_is_not_per_image_reads_no_feature() -> None:
    networks = DwaNetworks(7, EQUAL, 8, [False, True], seed=0)
    torch.nn.init.normal_(networks.output_weight)
    weights_STB = networks(torch.randn(5, 7)).detach()
    assert (weights_STB[0] == weights_STB[0, :, :1]).all()
    assert not (weights_STB[1] == weights_STB[1, :, :1]).all()


def test_a_subset_gives_the_weights_of_its_networks() -> None:
    networks = DwaNetworks(7, EQUAL, 8, [True, False, True], seed=0)
    torch.nn.init.normal_(networks.output_weight)
    features = torch.randn(5, 7)
    torch.testing.assert_close(networks.subset([2, 1])(features), networks(features)[[2, 1]])


def test_complements_are_negative_weights() -> None:
    """U = 0.2 C + 0.8 (1 - E) = 0.2 C - 0.8 E + 0.8."""
    metrics = np.array([[0.3, 0.6]])
    terms, weights = mixture_terms(metrics, signed=True), np.array([[0.2, 0.0, 0.0, 0.8]])
    assert metric_weights(weights, 2) == pytest.approx(np.array([[0.2, -0.8]]))
    assert float((terms * weights).sum()) == pytest.approx(0.2 * 0.3 - 0.8 * 0.6 + 0.8)


def fit(loss: np.ndarray, metrics: np.ndarray, training: np.ndarray, penalties: list[float]) -> np.ndarray:
    """Weights (S, B, 3) of networks that read the metrics and noise."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(np.concatenate([metrics - 0.5, rng.normal(size=(len(loss), 4))], axis=1)).float()
    pairs = ranking_pairs(loss, np.zeros(len(loss), dtype=np.int64), training, seed=0)
    networks = fit_networks(features, metrics, training, pairs, penalties, EQUAL, CONFIG)
    return networks(features).detach().numpy().swapaxes(1, 2)


@pytest.mark.parametrize("metric", range(3))
def test_they_find_the_metric_that_matters(metric: int) -> None:
    rng = np.random.default_rng(1)
    metrics = rng.random((60, 3))
    loss = metrics[:, metric] + 0.05 * rng.normal(size=60)
    weights = fit(loss, metrics, np.ones((2, 60), dtype=bool), [float("inf"), 10.0])
    assert (weights.mean(axis=1)[:, metric] > 0.7).all()


def test_networks_side_by_side_do_not_touch_each_other() -> None:
    """One network's weights are the same whatever its neighbor learns, and depend on its own samples alone."""
    rng = np.random.default_rng(2)
    metrics, loss = rng.random((40, 3)), rng.random(40)
    training = np.arange(40) % 2 == np.array([[0], [1]])
    first = fit(loss, metrics, training, [10.0, 10.0])
    changed = np.where(training[1], rng.random(40), loss)
    second = fit(changed, metrics, training, [10.0, 10.0])
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


def test_the_penalty_on_single_images_fades_with_their_number() -> None:
    """c / n: the same c lets 400 images differ more than 40."""
    rng = np.random.default_rng(3)
    spread = []
    for count in (40, 400):
        metrics = rng.random((count, 3))
        loss = np.where(metrics[:, 0] > 0.5, metrics[:, 1], metrics[:, 2])
        weights = fit(loss, metrics, np.ones((1, count), dtype=bool), [1000.0])[0]
        spread.append(weights.std(axis=0).mean())
    assert spread[1] > 2 * spread[0]


def test_the_fit_is_seeded() -> None:
    rng = np.random.default_rng(4)
    metrics, loss = rng.random((30, 3)), rng.random(30)
    first, second = (fit(loss, metrics, np.ones((1, 30), dtype=bool), [10.0]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("count", [1, 4096, 9000])
def test_statistics_of_features_are_the_same_in_blocks(count: int) -> None:
    features = np.random.default_rng(count).normal([0, 1e3, 5], [1, 0.1, 0], (count, 3))
    mean, std = mean_and_std(features)
    assert mean.tolist() == pytest.approx(features.mean(axis=0).tolist(), rel=1e-12, abs=1e-12)
    assert std.tolist() == pytest.approx(features.std(axis=0).tolist(), rel=1e-9, abs=1e-9)
