"""What moves the weights: networks written by hand, whose answer is known."""

import numpy as np
import pytest
import torch

from detectron_ext.dwa import DwaEnsemble, DwaNetwork
from detectron_ext.feature_importance import feature_importance

FEATURES = np.random.default_rng(0).normal(loc=5.0, scale=3.0, size=(400, 4))


def make_ensemble(*networks: DwaNetwork) -> DwaEnsemble:
    return DwaEnsemble(networks, FEATURES.mean(axis=0), FEATURES.std(axis=0))


def make_network(feature: int, strength: float = 0.2) -> DwaNetwork:
    """Entropy's logit rises with one feature, overlap's falls with it; the others are not looked at."""
    network = DwaNetwork(4, 2, 1)
    with torch.no_grad():
        network.body[0].weight.zero_()
        network.body[0].bias.zero_()
        network.body[0].weight[0, feature] = strength
        network.metric_head.weight[:, 0] = torch.tensor([0.0, 1.0, -1.0])
    return network


def test_the_one_feature_that_is_read_moves_everything() -> None:
    found = feature_importance(make_ensemble(make_network(2)), FEATURES)
    assert found.importance_F[[0, 1, 3]] == pytest.approx(0)
    assert found.effect_per_std_F3[[0, 1, 3]] == pytest.approx(0)
    assert found.importance_F[2] == pytest.approx(found.std, rel=0.05)
    confidence, entropy, overlap = found.effect_per_std_F3[2]
    # softmax of (0, t, -t) at small t is 1/3 + (0, t/3, -t/3), and t is 0.2 for one deviation, bent a little by tanh
    assert (entropy, overlap) == pytest.approx((0.2 / 3, -0.2 / 3), rel=0.15)
    assert abs(confidence) < 0.01


def test_figures_are_those_of_weights_asked_by_hand() -> None:
    both = make_ensemble(make_network(0), make_network(1, strength=0.6))
    held = FEATURES.copy()
    held[:, 1] = FEATURES[:, 1].mean()
    change = both.weights(FEATURES)[0] - both.weights(held)[0]
    found = feature_importance(both, FEATURES)
    assert found.importance_F[1] == pytest.approx(np.mean([np.abs(row).sum() / 2 for row in change]))
    assert found.importance_F[1] > 2 * found.importance_F[0] > 0


def test_equal_weights_have_no_drivers() -> None:
    found = feature_importance(make_ensemble(DwaNetwork(4, 2, 3)), FEATURES)
    assert found.std == pytest.approx(0)
    assert found.importance_F == pytest.approx(0)


def test_a_feature_all_images_share_moves_nothing() -> None:
    constant = FEATURES.copy()
    constant[:, 3] = 7.0
    one = DwaEnsemble((make_network(3),), constant.mean(axis=0), np.ones(4))
    found = feature_importance(one, constant)
    assert found.importance_F[3] == pytest.approx(0)
    assert np.isfinite(found.effect_per_std_F3).all()


@pytest.mark.parametrize("images", [1, 1_999, 4_001])
def test_small_and_large_pools(images: int) -> None:
    features = np.random.default_rng(1).normal(size=(images, 4))
    found = feature_importance(DwaEnsemble((make_network(1),), np.zeros(4), np.ones(4)), features)
    assert found.importance_F.argmax() == 1
    assert np.isfinite(found.importance_F).all()
