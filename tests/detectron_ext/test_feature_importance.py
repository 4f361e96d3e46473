"""What moves the weights: networks written by hand, whose answer is known."""

import numpy as np
import pytest
import torch

from detectron_ext.dwa import DwaEnsemble, DwaNetworks
from detectron_ext.feature_importance import feature_importance

FEATURES = np.random.default_rng(0).normal(loc=5.0, scale=3.0, size=(400, 4))


EQUAL = np.full(3, 1 / 3)


def make_ensemble(
    *reads: tuple[int, float], mean: np.ndarray | None = None, std: np.ndarray | None = None
) -> DwaEnsemble:
    """Networks of which each reads one feature: entropy's logit rises with it, overlap's falls."""
    networks = DwaNetworks(4, EQUAL, 1, [True] * len(reads), seed=0)
    with torch.no_grad():
        networks.hidden_weight.zero_()
        networks.hidden_bias.zero_()
        networks.output_weight[:, :, 0] = torch.tensor([0.0, 1.0, -1.0])
        for index, (feature, strength) in enumerate(reads):
            networks.hidden_weight[index, 0, feature] = strength
    mean = FEATURES.mean(axis=0) if mean is None else mean
    return DwaEnsemble(networks, mean, FEATURES.std(axis=0) if std is None else std)


def test_the_one_feature_that_is_read_moves_everything() -> None:
    found = feature_importance(make_ensemble((2, 0.2)), FEATURES, 3)
    assert found.importance_F[[0, 1, 3]] == pytest.approx(0)
    assert found.effect_per_std_FM[[0, 1, 3]] == pytest.approx(0)
    assert found.importance_F[2] == pytest.approx(found.std, rel=0.05)
    confidence, entropy, overlap = found.effect_per_std_FM[2]
    # softmax of (0, t, -t) at small t is 1/3 + (0, t/3, -t/3), and t is 0.2 for one deviation, bent a little by tanh
    assert (entropy, overlap) == pytest.approx((0.2 / 3, -0.2 / 3), rel=0.15)
    assert abs(confidence) < 0.01


def test_figures_are_those_of_weights_asked_by_hand() -> None:
    both = make_ensemble((0, 0.2), (1, 0.6))
    held = FEATURES.copy()
    held[:, 1] = FEATURES[:, 1].mean()
    change = both.weights(FEATURES) - both.weights(held)
    found = feature_importance(both, FEATURES, 3)
    assert found.importance_F[1] == pytest.approx(np.mean([np.abs(row).sum() / 2 for row in change]))
    assert found.importance_F[1] > 2 * found.importance_F[0] > 0


def test_equal_weights_have_no_drivers() -> None:
    found = feature_importance(make_ensemble((0, 0.0)), FEATURES, 3)
    assert found.std == pytest.approx(0)
    assert found.importance_F == pytest.approx(0)


def test_a_feature_all_images_share_moves_nothing() -> None:
    constant = FEATURES.copy()
    constant[:, 3] = 7.0
    one = make_ensemble((3, 0.2), mean=constant.mean(axis=0), std=np.ones(4))
    found = feature_importance(one, constant, 3)
    assert found.importance_F[3] == pytest.approx(0)
    assert np.isfinite(found.effect_per_std_FM).all()


@pytest.mark.parametrize("images", [1, 1_999, 4_001])
def test_small_and_large_pools(images: int) -> None:
    features = np.random.default_rng(1).normal(size=(images, 4))
    found = feature_importance(make_ensemble((1, 0.2), mean=np.zeros(4), std=np.ones(4)), features, 3)
    assert found.importance_F.argmax() == 1
    assert np.isfinite(found.importance_F).all()
