"""The norm-scaled classifier: what tau does to the score layer, and that nothing else changes."""

import math

import pytest
import torch

from detectron_ext.class_rebalancing import SCORE_WEIGHT, tau_normalize
from detectron_ext.meta_arch import build_detector, cpu_state_dict
from tests.detectron_ext.tiny import TINY


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_tau_scales_each_class_by_its_norm(tau: float) -> None:
    """Norms 5, 0.2 and 1 have the geometric mean 1; the background row stays."""
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.2], [-1.0, 0.0], [7.0, 7.0]])
    state = {SCORE_WEIGHT: weight.clone(), "bias": torch.ones(4)}
    got = tau_normalize(state, tau)
    expected = [
        [row[0] * (1 / math.hypot(*row)) ** tau, row[1] * (1 / math.hypot(*row)) ** tau] for row in weight[:3].tolist()
    ] + [[7.0, 7.0]]
    torch.testing.assert_close(got[SCORE_WEIGHT], torch.tensor(expected))
    assert torch.equal(got["bias"], state["bias"])
    assert torch.equal(state[SCORE_WEIGHT], weight)  # the trained state stays


def test_tau_0_one_class_and_a_class_without_weights() -> None:
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert torch.equal(tau_normalize({SCORE_WEIGHT: weight}, 0.0)[SCORE_WEIGHT], weight)
    torch.testing.assert_close(tau_normalize({SCORE_WEIGHT: weight}, 1.0)[SCORE_WEIGHT], weight)
    empty = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    assert tau_normalize({SCORE_WEIGHT: empty}, 1.0)[SCORE_WEIGHT].isfinite().all()


def test_a_detector_keeps_all_but_its_class_scores() -> None:
    torch.manual_seed(0)
    model = build_detector(TINY, "cpu")
    state = cpu_state_dict(model)
    got = tau_normalize(state, 1.0)
    assert {name for name in state if not torch.equal(state[name], got[name])} == {SCORE_WEIGHT}
    model.load_state_dict(got)
    norms = got[SCORE_WEIGHT][:-1].norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(len(norms)))
