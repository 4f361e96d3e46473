"""The anchor to a source teacher: the divergence written out, its adversarial perturbation, and what it trains."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.source_anchor import MAX_REGIONS, SourceAnchor
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


@pytest.fixture
def source(detector: PerImageRCNN) -> PerImageRCNN:
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
    return detector.eval().requires_grad_(False)


@pytest.fixture
def student(source: PerImageRCNN) -> PerImageRCNN:
    moved = copy.deepcopy(source).requires_grad_(True)
    with torch.no_grad():
        moved.roi_heads.box_predictor.cls_score.bias.add_(torch.tensor([0.5, -0.2, 0.0, 0.1]))
    return moved.train()


@torch.no_grad()
def posteriors(network: PerImageRCNN, view: dict[str, Any], proposals: Any) -> list[list[float]]:
    features = network.backbone(network.preprocess_image([view]).tensor)
    [own_RF] = network.roi_heads.region_features(features, [proposals])
    rows: list[list[float]] = network.roi_heads.box_predictor(own_RF)[0].double().softmax(dim=1).tolist()
    return rows


def test_the_loss_is_the_mean_divergence_over_the_sources_proposals(
    source: PerImageRCNN, student: PerImageRCNN, example: Callable[..., dict[str, Any]]
) -> None:
    """Images of two shapes, so that the order of the results is tested too."""
    views, expected = [example(0), example(1, side_px=96)], []
    for view in views:
        images = source.preprocess_image([view])
        [proposals], _ = source.proposal_generator(images, source.backbone(images.tensor), None)
        boxes = proposals.proposal_boxes[:MAX_REGIONS]
        pairs = zip(posteriors(source, view, boxes), posteriors(student, view, boxes), strict=True)
        terms = [sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in pairs]
        assert len(terms) > 1
        expected.append(sum(terms) / len(terms))
    found = SourceAnchor(source, 1.0, 0.0).losses(student, views).tolist()
    assert found == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0.001


def test_the_perturbation_is_small_and_worse_than_a_random_one(
    source: PerImageRCNN, example: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the student is the source, nothing differs without a perturbation, and a gradient is there all the same."""
    view, seen = example(0), []
    inner = source.preprocess_image

    def preprocess(inputs: list[dict[str, Any]]) -> Any:
        seen.append(inputs[0]["image"].detach().float() - view["image"])
        return inner(inputs)

    student = copy.deepcopy(source)
    monkeypatch.setattr(student, "preprocess_image", preprocess)
    assert SourceAnchor(source, 1.0, 0.0).losses(student, [view]).item() == pytest.approx(0, abs=1e-6)
    torch.manual_seed(1)
    worst = SourceAnchor(source, 1.0, 2.0).losses(student, [view]).item()
    probe, moved = seen[-2:]
    assert probe.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-3)
    assert moved.square().mean().sqrt().item() == pytest.approx(2.0, rel=1e-3)
    random = {"image": view["image"] + 2.0 * torch.randn_like(view["image"])}
    images = source.preprocess_image([view])
    [proposals], _ = source.proposal_generator(images, source.backbone(images.tensor), None)
    boxes = proposals.proposal_boxes[:MAX_REGIONS]
    pairs = list(zip(posteriors(source, view, boxes), posteriors(source, random, boxes), strict=True))
    by_chance = sum(p * math.log(p / q) for rows in pairs for p, q in zip(*rows, strict=True)) / len(pairs)
    assert worst > 1.5 * by_chance > 0


def anchored_trainer(weight: float = 2.0) -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, burn_in=0))
    run.anchor = SourceAnchor(copy.deepcopy(run.teacher), weight, 2.0)
    return run


def unlabeled_batch(batch_of: Callable[[int], StepBatch]) -> Callable[[int], StepBatch]:
    return lambda iteration: batch_of(iteration + SCHEDULE.burn_in)


def test_a_step_adds_the_weighted_divergence_and_leaves_the_source_as_it_was(
    batch_of: Callable[[int], StepBatch],
) -> None:
    """The first step draws the same regions with and without; the anchor's draws come after them."""
    batch, none = unlabeled_batch(batch_of), new_trainer(replace(SCHEDULE, burn_in=0))
    single, double = anchored_trainer(1.0), anchored_trainer(2.0)
    before = copy.deepcopy(single.student.state_dict())
    plain, once, twice = (run.step(batch(0)) for run in (none, single, double))
    assert once.loss_sup == twice.loss_sup == plain.loss_sup
    added = once.loss_unsup - plain.loss_unsup
    assert added > 0
    assert twice.loss_unsup - plain.loss_unsup == pytest.approx(2 * added, rel=1e-3)
    assert single.anchor is not None
    for name, tensor in single.anchor._source.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    one, other = none.student.backbone, single.student.backbone
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_going_on_from_a_checkpoint_repeats_the_run_with_an_anchor(
    batch_of: Callable[[int], StepBatch], tmp_path: Any
) -> None:
    """The source is not in the checkpoint: it is what the run started from, and made anew."""
    batch = unlabeled_batch(batch_of)
    whole, killed, resumed = (anchored_trainer() for _ in range(3))
    expected = run_steps(whole, batch, 2)
    run_steps(killed, batch, 1)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert run_steps(resumed, batch, 2) == expected[1:]
