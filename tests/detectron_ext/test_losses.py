"""Formulas against written-out loops, and the properties the method rests on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.losses import DetectionLosses, focal_loss, image_weight, per_image_mean, roi_class_weights


def focal_by_hand(logits: list[list[float]], classes: list[int], gamma: float, weights: list[float]) -> list[float]:
    losses = []
    for row, label, weight in zip(logits, classes, weights, strict=True):
        p = math.exp(row[label]) / sum(math.exp(value) for value in row)
        losses.append(-weight * (1 - p) ** gamma * math.log(p))
    return losses


@given(
    logits=st.lists(st.lists(st.floats(-6, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    gamma=st.sampled_from([0.0, 1.0, 1.5, 2.0]),
    seed=st.integers(0, 99),
)
def test_focal_loss_is_the_written_out_formula(logits: list[list[float]], gamma: float, seed: int) -> None:
    classes = [(seed + index) % 4 for index in range(len(logits))]
    weights = [0.5 + index for index in range(len(logits))]
    loss = focal_loss(torch.tensor(logits), torch.tensor(classes), gamma, torch.tensor(weights))
    expected = torch.tensor(focal_by_hand(logits, classes, gamma, weights))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


def test_gamma_zero_is_cross_entropy() -> None:
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(focal_loss(logits, classes, 0.0, torch.ones(6)), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5])
def test_the_gradient_is_finite_where_the_detector_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0, 1]), gamma, torch.ones(3))
    assert loss[0].item() == pytest.approx(0, abs=1e-12)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_roi_gives_an_empty_loss_with_a_gradient() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = per_image_mean(
        focal_loss(logits, torch.zeros(0, dtype=torch.int64), 1.5, torch.ones(0)), torch.zeros(0, dtype=torch.int64), 2
    )
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert logits.grad is not None


def log_of(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_a_roi_of_a_class_gets_the_weight_of_its_own_class_whatever_it_claims() -> None:
    logits = torch.tensor([log_of(0.1, 0.8, 0.1), log_of(0.1, 0.8, 0.1)])
    weights = roi_class_weights(logits, torch.tensor([0, 1]), torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0]))
    assert weights.tolist() == [2.0, 3.0]


def test_a_background_roi_gets_the_weight_of_the_class_it_claims_most() -> None:
    logits = torch.tensor([log_of(0.06, 0.04, 0.9), log_of(0.04, 0.06, 0.9), log_of(0.04, 0.04, 0.92)])
    weights = roi_class_weights(logits, torch.full((3,), 2), torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0]))
    assert weights.tolist() == [5.0, 7.0, 1.0]  # the last claims neither by 0.05


def test_equal_class_weights_leave_every_bit_of_loss_and_gradient() -> None:
    results = []
    for weighted in (False, True):
        logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        classes = torch.arange(9) % 4
        weight_R = roi_class_weights(logits, classes, torch.ones(3), torch.ones(3)) if weighted else torch.ones(9)
        loss = focal_loss(logits, classes, 1.5, weight_R)
        loss.sum().backward()
        results.append((loss, logits.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_no_roi_has_no_weight() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert roi_class_weights(torch.zeros(0, 3), nothing, torch.ones(2), torch.ones(2)).shape == (0,)


def test_per_image_mean_divides_by_the_images_own_rois() -> None:
    loss = per_image_mean(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2]), 3)
    assert loss.tolist() == [2.0, 0.0, 10.0]


def test_detection_losses_add_up() -> None:
    losses = DetectionLosses(*(torch.tensor([value]) for value in (1.0, 2.0, 4.0, 8.0)))
    assert losses.classification().item() == 5.0
    assert losses.total().item() == 15.0


@pytest.mark.parametrize(("direction", "sign"), [("favor_uncertain", 1), ("favor_certain", -1)])
def test_image_weight_is_a_sigmoid(direction: str, sign: int) -> None:
    z = torch.tensor([-2.0, 0.0, 3.0])
    expected = [1 / (1 + math.exp(-sign * value)) for value in z.tolist()]
    torch.testing.assert_close(image_weight(z, direction), torch.tensor(expected))


def test_image_weight_none_is_one() -> None:
    assert image_weight(torch.tensor([-5.0, 5.0]), "uniform").tolist() == [1.0, 1.0]
