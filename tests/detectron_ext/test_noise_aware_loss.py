"""Losses for labels that may be wrong, written out, and where each of them applies."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.noise_aware_loss import (
    NoiseAwareLoss,
    bootstrap_loss,
    generalized_cross_entropy,
    mark_pseudo_labeled,
)
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny import NUM_CLASSES, TINY
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 4.0, 1.0], [-30.0, 0.0, 1.0, 30.0]])
CLASS_IDS = torch.tensor([0, 1, 3])
WEIGHTS = torch.tensor([1.0, 2.5, 0.5])


def posteriors(logits_RK: torch.Tensor) -> list[list[float]]:
    rows = []
    for row in logits_RK.tolist():
        total = sum(math.exp(value) for value in row)
        rows.append([math.exp(value) / total for value in row])
    return rows


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalized_cross_entropy_written_out(q: float) -> None:
    expected = [
        w * (1 - row[k] ** q) / q
        for row, k, w in zip(posteriors(LOGITS), CLASS_IDS.tolist(), WEIGHTS.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        generalized_cross_entropy(LOGITS, CLASS_IDS, q, WEIGHTS), torch.tensor(expected), rtol=1e-5, atol=1e-7
    )


def test_generalized_cross_entropy_is_between_cross_entropy_and_the_absolute_error() -> None:
    ones = torch.ones(3)
    nearly_0 = generalized_cross_entropy(LOGITS, CLASS_IDS, 1e-4, ones)
    torch.testing.assert_close(nearly_0, F.cross_entropy(LOGITS, CLASS_IDS, reduction="none"), rtol=1e-3, atol=1e-6)
    p_true = F.softmax(LOGITS, dim=1)[torch.arange(3), CLASS_IDS]
    torch.testing.assert_close(generalized_cross_entropy(LOGITS, CLASS_IDS, 1.0, ones), 1 - p_true)


def test_a_contradicted_label_pulls_less() -> None:
    """The gradient is that of cross entropy times p_t^q; finite where p_t is 0 in float32."""
    logits = torch.tensor([[0.0, 3.0, 0.0, 0.0], [0.0, 200.0, 0.0, 0.0]], requires_grad=True)
    ids, q = torch.tensor([0, 0]), 0.7
    [pull] = torch.autograd.grad(generalized_cross_entropy(logits, ids, q, torch.ones(2)).sum(), logits)
    [full] = torch.autograd.grad(F.cross_entropy(logits, ids, reduction="sum"), logits)
    p_true = F.softmax(logits.detach(), dim=1)[:, :1]
    torch.testing.assert_close(pull, p_true**q * full)
    assert pull.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_bootstrap_written_out(gamma: float) -> None:
    reliability = torch.tensor([1.0, 0.6, 0.0])
    expected = []
    for row, k, w, r in zip(
        posteriors(LOGITS), CLASS_IDS.tolist(), WEIGHTS.tolist(), reliability.tolist(), strict=True
    ):
        focal = -((1 - row[k]) ** gamma) * math.log(row[k])
        entropy = -sum(p * math.log(p) for p in row if p > 0)
        expected.append(w * (r * focal + (1 - r) * entropy))
    got = bootstrap_loss(LOGITS, CLASS_IDS, reliability, gamma, WEIGHTS)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-7)


def sampled(classes: list[int], is_pseudo: bool, scores: list[float] | None) -> Instances:
    image = Instances((64, 64))
    image.gt_classes = torch.tensor(classes)
    image.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0 + i, 10.0] for i in range(len(classes))]))
    mark_pseudo_labeled(image, is_pseudo)
    if scores is not None:
        image.gt_score = torch.tensor(scores)
        image.gt_boxes = image.proposal_boxes
    return image


@pytest.mark.parametrize("kind", ["generalized", "bootstrap"])
@pytest.mark.parametrize("on_labels", [False, True])
def test_which_regions_get_which_loss(detector: PerImageRCNN, kind: str, on_labels: bool) -> None:
    """A labeled image, one with pseudo-labels, and one in which the teacher found nothing; background is reliable."""
    background = NUM_CLASSES
    proposals = [
        sampled([1, background], False, None),
        sampled([0, 2, background], True, [0.9, 0.4, 0.3]),
        sampled([background], True, None),
    ]
    torch.manual_seed(1)
    logits, deltas = torch.randn(6, NUM_CLASSES + 1), torch.zeros(6, 4)
    detector.set_noise_aware_loss(NoiseAwareLoss(kind, 0.7, on_labels))  # type: ignore[arg-type]
    got = detector.roi_heads.box_predictor.losses((logits, deltas), proposals)["loss_cls"]
    reliability = [1.0, 1.0, 0.9, 0.4, 1.0, 1.0]
    is_noisy = [on_labels, on_labels, True, True, True, True]
    losses = []
    for row, k, r, noisy in zip(posteriors(logits), [1, 3, 0, 2, 3, 3], reliability, is_noisy, strict=True):
        focal = -((1 - row[k]) ** TINY.focal_gamma) * math.log(row[k])
        if not noisy:
            losses.append(focal)
        elif kind == "generalized":
            losses.append((1 - row[k] ** 0.7) / 0.7)
        else:
            losses.append(r * focal - (1 - r) * sum(p * math.log(p) for p in row))
    expected = torch.tensor([sum(losses[:2]) / 2, sum(losses[2:5]) / 3, losses[5]])
    torch.testing.assert_close(got, expected)


def noisy_trainer(loss: NoiseAwareLoss | None, threshold: float = 0.0) -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, burn_in=0, rampup=0), threshold=threshold)
    run.student.set_noise_aware_loss(loss)
    return run


def test_a_step_replaces_the_loss_of_unlabeled_images_only(batch_of: Callable[[int], StepBatch]) -> None:
    plain = noisy_trainer(None).step(batch_of(2))
    for kind in ("generalized", "bootstrap"):
        log = noisy_trainer(NoiseAwareLoss(kind, 0.7, False)).step(batch_of(2))  # type: ignore[arg-type]
        assert log.loss_sup == plain.loss_sup
        assert log.loss_unsup != pytest.approx(plain.loss_unsup, rel=1e-4)
    on_labels = noisy_trainer(NoiseAwareLoss("generalized", 0.7, True)).step(batch_of(2))
    assert on_labels.loss_sup != pytest.approx(plain.loss_sup, rel=1e-4)
    nothing_found = noisy_trainer(NoiseAwareLoss("generalized", 0.7, False), threshold=1.0).step(batch_of(2))
    focal = noisy_trainer(None, threshold=1.0).step(batch_of(2))
    assert nothing_found.loss_unsup != pytest.approx(focal.loss_unsup, rel=1e-4)


def test_a_pseudo_label_carries_the_score_of_its_detection(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    views = batch_of(2).unlabeled_weak
    targets = pseudo_label(run.teacher, views, ScoreThreshold("fixed", 0.0, NUM_CLASSES)).targets
    for (detections, _), target in zip(run.teacher(views), targets, strict=True):
        assert len(target) == len(detections) > 0
        torch.testing.assert_close(target.gt_score, detections.scores)


def test_a_run_that_goes_on_ends_as_an_uninterrupted_one(batch_of: Callable[[int], StepBatch]) -> None:
    loss = NoiseAwareLoss("bootstrap", 0.7, False)
    whole, killed, resumed = (noisy_trainer(loss) for _ in range(3))
    run_steps(whole, lambda i: batch_of(i + 2), 4)
    run_steps(killed, lambda i: batch_of(i + 2), 2)
    resumed.load_state_dict(killed.state_dict())
    run_steps(resumed, lambda i: batch_of(i + 2), 4)
    for one, two in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, two)
