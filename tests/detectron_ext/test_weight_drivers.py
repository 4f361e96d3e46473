"""What moves the weights: networks written by hand, whose answer is known."""

import numpy as np
import pytest
import torch

from detectron_ext.dwa import DwaEnsemble, DWANetwork
from detectron_ext.weight_drivers import weight_drivers

FEATURES = np.random.default_rng(0).normal(loc=5.0, scale=3.0, size=(400, 4))


def ensemble(*networks: DWANetwork) -> DwaEnsemble:
    return DwaEnsemble(networks, FEATURES.mean(axis=0), FEATURES.std(axis=0))


def network_that_reads(feature: int, strength: float = 0.2) -> DWANetwork:
    """Entropy's logit rises with one feature, overlap's falls with it; the others are not looked at."""
    network = DWANetwork(4, 2, 1)
    with torch.no_grad():
        network.body[0].weight.zero_()
        network.body[0].bias.zero_()
        network.body[0].weight[0, feature] = strength
        network.metric_head.weight[:, 0] = torch.tensor([0.0, 1.0, -1.0])
    return network


def test_the_one_feature_that_is_read_moves_everything() -> None:
    found = weight_drivers(ensemble(network_that_reads(2)), FEATURES)
    assert found.moved_F[[0, 1, 3]] == pytest.approx(0)
    assert found.per_deviation_F3[[0, 1, 3]] == pytest.approx(0)
    assert found.moved_F[2] == pytest.approx(found.spread, rel=0.05)
    confidence, entropy, overlap = found.per_deviation_F3[2]
    # softmax of (0, t, -t) at small t is 1/3 + (0, t/3, -t/3), and t is 0.2 for one deviation, bent a little by tanh
    assert (entropy, overlap) == pytest.approx((0.2 / 3, -0.2 / 3), rel=0.15)
    assert abs(confidence) < 0.01


def test_figures_are_those_of_weights_asked_by_hand() -> None:
    both = ensemble(network_that_reads(0), network_that_reads(1, strength=0.6))
    held = FEATURES.copy()
    held[:, 1] = FEATURES[:, 1].mean()
    change = both.weights(FEATURES)[0] - both.weights(held)[0]
    found = weight_drivers(both, FEATURES)
    assert found.moved_F[1] == pytest.approx(np.mean([np.abs(row).sum() / 2 for row in change]))
    assert found.moved_F[1] > 2 * found.moved_F[0] > 0


def test_equal_weights_have_no_drivers() -> None:
    found = weight_drivers(ensemble(DWANetwork(4, 2, 3)), FEATURES)
    assert found.spread == pytest.approx(0)
    assert found.moved_F == pytest.approx(0)


def test_a_feature_all_images_share_moves_nothing() -> None:
    constant = FEATURES.copy()
    constant[:, 3] = 7.0
    one = DwaEnsemble((network_that_reads(3),), constant.mean(axis=0), np.ones(4))
    found = weight_drivers(one, constant)
    assert found.moved_F[3] == pytest.approx(0)
    assert np.isfinite(found.per_deviation_F3).all()


@pytest.mark.parametrize("images", [1, 1_999, 4_001])
def test_small_and_large_pools(images: int) -> None:
    features = np.random.default_rng(1).normal(size=(images, 4))
    found = weight_drivers(DwaEnsemble((network_that_reads(1),), np.zeros(4), np.ones(4)), features)
    assert found.moved_F.argmax() == 1
    assert np.isfinite(found.moved_F).all()
