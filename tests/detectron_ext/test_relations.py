"""Relations between regions: the divergence written out, where it is zero, and what it trains."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from detectron_ext.data import StepBatch
from detectron_ext.pseudo_labels import pseudo_label
from detectron_ext.relations import MAX_REGIONS, relation_loss
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def written_out(student: np.ndarray, teacher: np.ndarray) -> float:
    def row_softmax(features: np.ndarray, row: int) -> list[float]:
        lengths = [math.sqrt(sum(value * value for value in feature)) for feature in features]
        powers = [
            math.exp(
                sum(a * b for a, b in zip(features[row], features[k], strict=True)) / lengths[row] / lengths[k] / 0.1
            )
            for k in range(len(features))
            if k != row
        ]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for row in range(len(student)):
        p, q = row_softmax(teacher, row), row_softmax(student, row)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_the_loss_is_the_mean_divergence_of_the_rows_without_their_diagonal() -> None:
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    loss = relation_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    assert loss.item() == pytest.approx(written_out(student, teacher), rel=1e-5)
    assert loss.item() > 0.1


def test_equal_relations_cost_nothing_whatever_the_direction_of_the_features() -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    assert relation_loss(3 * features @ rotation, features).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("num_regions", [0, 1, 2])
def test_too_few_regions_cost_nothing_and_keep_a_gradient_path(num_regions: int) -> None:
    student = torch.randn(num_regions, 4, requires_grad=True)
    loss = relation_loss(student, torch.randn(num_regions, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    relation_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.any()


def related_trainer(weight: float = 2.0, **changes: Any) -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, **changes))
    run.relation_weight = weight
    return run


def test_a_step_adds_the_weighted_loss_of_every_unlabeled_image(
    batch_of: Callable[[int], StepBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out: features of the teacher's best boxes in the weak view, and of the student's in the strong one."""
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))
    changes = {"burn_in": 0, "rampup": 0}
    plain, related = related_trainer(0.0, **changes), related_trainer(2.0, **changes)
    batch = batch_of(2)
    found = [image for image, _ in plain.teacher.detect_with_regions(batch.unlabeled_weak)]
    boxes = [image.pred_boxes[:MAX_REGIONS] for image in found]
    assert all(len(own) >= 3 for own in boxes)
    plain.student.eval()  # the same features; batch norms are frozen either way
    with torch.no_grad():
        own = plain.student.region_features(batch.unlabeled_strong, boxes)
    plain.student.train()
    added = [
        written_out(student.double().numpy(), image.box_features[:MAX_REGIONS].double().numpy())
        for student, image in zip(own, found, strict=True)
    ]
    expected = plain.step(batch)
    got = related.step(batch)
    assert got.loss_sup == pytest.approx(expected.loss_sup, rel=1e-5)
    image_weight = 0.5  # sigmoid(0)
    assert got.loss_unsup == pytest.approx(expected.loss_unsup + image_weight * 2.0 * np.mean(added), rel=1e-3)


def test_it_trains_the_box_head(batch_of: Callable[[int], StepBatch]) -> None:
    run = related_trainer(burn_in=0)
    batch = batch_of(2)
    [first, _] = pseudo_label(run.teacher, batch.unlabeled_weak, run.threshold, wants_regions=True).regions or []
    shifted = {**batch.unlabeled_strong[0], "image": batch.unlabeled_strong[0]["image"].flip(0)}
    inputs = [{**batch.labeled[0], **shifted, "regions": first}]
    with EventStorage():
        losses = run.student(inputs)
    assert losses.relations_N is not None
    assert losses.relations_N.item() > 0
    losses.relations_N.sum().backward()
    assert run.student.roi_heads.box_head.fc1.weight.grad.any()
    assert run.student.proposal_generator.rpn_head.objectness_logits.weight.grad is None


def test_going_on_from_a_checkpoint_repeats_the_run_with_relations(
    batch_of: Callable[[int], StepBatch], tmp_path: Any
) -> None:
    whole, killed, resumed = (related_trainer() for _ in range(3))
    expected = run_steps(whole, batch_of, 5)
    run_steps(killed, batch_of, 3)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert run_steps(resumed, batch_of, 5) == expected[3:]
    for one, two in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, two)
