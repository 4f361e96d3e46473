"""Anchors by cost: against a loop, and in the proposal network."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from detectron_ext.data import StepBatch
from detectron_ext.losses import IGNORE_LABEL, set_box_trained
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.sim_ota import assign
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def iou(one: list[float], two: list[float]) -> float:
    width = max(min(one[2], two[2]) - max(one[0], two[0]), 0.0)
    height = max(min(one[3], two[3]) - max(one[1], two[1]), 0.0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return width * height / (sum(area) - width * height)


def assign_by_loop(
    centers: list[list[float]],
    strides: list[float],
    logits: list[float],
    predicted: list[list[float]],
    targets: list[list[float]],
) -> list[int]:
    """YOLOX's rule, one anchor and one target at a time."""
    cost, candidates = {}, set()
    for a, (x, y) in enumerate(centers):
        for g, (left, top, right, bottom) in enumerate(targets):
            inside = left < x < right and top < y < bottom
            distance = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            central = distance < 2.5 * strides[a]
            if inside or central:
                candidates.add(a)
            binary_cross_entropy = math.log(1 + math.exp(-logits[a]))
            cost[a, g] = binary_cross_entropy - 3 * math.log(iou(predicted[a], targets[g]) + 1e-8)
            cost[a, g] += 0 if inside and central else 1e5
    chosen: dict[int, list[int]] = {a: [] for a in candidates}
    for g, target in enumerate(targets):
        overlaps = sorted((iou(predicted[a], target) for a in candidates), reverse=True)
        k = max(int(sum(overlaps[:10])), 1)
        for a in sorted(candidates, key=lambda a: (cost[a, g], a))[:k]:
            chosen[a].append(g)
    matched = [-1] * len(centers)
    for a, wanted_by in chosen.items():
        if len(wanted_by) == 1:
            matched[a] = wanted_by[0]
        elif wanted_by:
            matched[a] = min(range(len(targets)), key=lambda g: cost[a, g])
    return matched


def grid(side_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centers and strides of one anchor per cell on levels of stride 8, 16 and 32."""
    centers, strides = [], []
    for stride in (8, 16, 32):
        steps = torch.arange(stride / 2, side_px, stride)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centers.append(torch.stack([x, y], dim=2).reshape(-1, 2))
        strides.append(torch.full((len(centers[-1]),), float(stride)))
    return torch.cat(centers), torch.cat(strides)


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_loop(seed: int) -> None:
    """Targets that overlap, so that several want one anchor; predictions near and far from them."""
    generator = torch.Generator().manual_seed(seed)
    centers, strides = grid(96)
    corners = 60 * torch.rand(5, 2, generator=generator)
    targets = torch.cat([corners, corners + 6 + 30 * torch.rand(5, 2, generator=generator)], dim=1)
    logits = 3 * torch.randn(len(centers), generator=generator)
    predicted = targets[torch.randint(5, (len(centers),), generator=generator)]
    predicted = predicted + 4 * torch.randn(len(centers), 4, generator=generator)
    predicted[:, 2:] = torch.maximum(predicted[:, 2:], predicted[:, :2] + 1)
    got = assign(centers, strides, logits, predicted, targets).tolist()
    assert got == assign_by_loop(
        centers.tolist(), strides.tolist(), logits.tolist(), predicted.tolist(), targets.tolist()
    )
    counts = [got.count(g) for g in range(5)]
    assert max(counts) > 1  # k is not 1 throughout


def test_every_target_that_is_alone_gets_an_anchor() -> None:
    """Also one that no center lies in; an image without targets is background."""
    centers, strides = grid(64)
    logits, predicted = torch.zeros(len(centers)), torch.cat([centers - 4, centers + 4], dim=1)
    between_centers = torch.tensor([[9.0, 9.0, 11.0, 11.0]])
    assert (assign(centers, strides, logits, predicted, between_centers) == 0).sum() == 1
    assert (assign(centers, strides, logits, predicted, torch.zeros(0, 4)) == -1).all()
    far_away = torch.tensor([[900.0, 900.0, 950.0, 950.0]])
    assert (assign(centers, strides, logits, predicted, far_away) == -1).all()


def test_the_better_predictions_are_chosen() -> None:
    """Of cells at the center of a target, those with the box right; with equal boxes, those that are surer."""
    centers, strides = torch.tensor([[28.0, 32.0], [36.0, 32.0], [32.0, 28.0]]), torch.full((3,), 8.0)
    target = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    predicted = torch.tensor([[16.0, 16, 48, 48], [16, 16, 32, 48], [16, 16, 24, 48]])
    assert assign(centers, strides, torch.zeros(3), predicted, target).tolist() == [0, -1, -1]
    same = torch.tensor([[16.0, 16, 32, 48]]).expand(3, 4)
    assert assign(centers, strides, torch.tensor([0.0, 2.0, 1.0]), same, target).tolist() == [-1, 0, -1]


@pytest.fixture
def by_cost(detector: PerImageRCNN) -> PerImageRCNN:
    detector.set_anchor_assigner("sim_ota")
    return detector


def targets_of(boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def labels_of(model: PerImageRCNN, targets: Instances) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Labels and boxes of all anchors, and the assignment by the loop from the network's own predictions."""
    rpn = model.proposal_generator
    torch.manual_seed(0)
    shapes = [torch.randn(1, 32, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)]
    anchors = rpn.anchor_generator(shapes)
    logits, deltas = rpn.predict(shapes)
    with torch.no_grad():
        torch.manual_seed(0)
        [labels], [boxes] = rpn.label_and_sample_by_cost(anchors, logits, deltas, [targets])
    strides = [stride for stride, level in zip((4, 8, 16, 32, 64), anchors, strict=True) for _ in range(len(level))]
    every = Boxes.cat(anchors)
    predicted = rpn.box2box_transform.apply_deltas(torch.cat(deltas, dim=1)[0], every.tensor)
    expected = assign_by_loop(
        every.get_centers().tolist(),
        [float(stride) for stride in strides],
        torch.cat(logits, dim=1)[0].tolist(),
        predicted.tolist(),
        targets.gt_boxes.tensor[targets.gt_classes >= 0].tolist(),
    )
    return labels, boxes, expected


def test_the_proposal_network_labels_by_its_own_predictions(by_cost: PerImageRCNN) -> None:
    objects = [[5.0, 5, 25, 25], [30.0, 20, 60, 50]]
    labels, boxes, expected = labels_of(by_cost, targets_of(objects, [1, 0]))
    assert (labels == 1).tolist() == [g >= 0 for g in expected]  # few enough that none is left out of the sample
    assert (labels == 1).sum() > 2
    for a, g in enumerate(expected):
        if g >= 0:
            assert boxes[a].tolist() == objects[g]
    assert (labels == 0).sum() == by_cost.proposal_generator.batch_size_per_image - (labels == 1).sum()


def test_unsure_places_and_untrained_boxes_are_as_with_iou(by_cost: PerImageRCNN) -> None:
    own, unsure = [5.0, 5, 25, 25], [30.0, 30, 60, 50]
    targets = targets_of([own, unsure], [1, IGNORE_LABEL])
    set_box_trained(targets, False)
    labels, _, expected = labels_of(by_cost, targets)
    assert (labels == 2).tolist() == [g >= 0 for g in expected]
    assert not (labels == 1).any()
    rpn = by_cost.proposal_generator
    shapes = [torch.zeros(1, 1, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)]
    every = Boxes.cat(rpn.anchor_generator(shapes)).tensor.tolist()
    near_unsure = [iou(box, unsure) >= 0.3 and iou(box, own) < 0.3 for box in every]
    assert any(near_unsure)
    assert (labels[torch.tensor(near_unsure)] == -1).all()
    nothing, _, _ = labels_of(by_cost, targets_of([], []))
    assert set(nothing.tolist()) == {0, -1}


def cost_trainer() -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, burn_in=1))
    run.student.set_anchor_assigner("sim_ota")
    return run


def test_training_by_cost_goes_on_as_an_uninterrupted_one(batch_of: Callable[[int], StepBatch]) -> None:
    whole, killed, resumed = (cost_trainer() for _ in range(3))
    logs = run_steps(whole, batch_of, 5)
    plain = run_steps(new_trainer(replace(SCHEDULE, burn_in=1)), batch_of, 1)
    assert logs[0].loss_sup != pytest.approx(plain[0].loss_sup, rel=1e-4)
    run_steps(killed, batch_of, 3)
    resumed.load_state_dict(killed.state_dict())
    run_steps(resumed, batch_of, 5)
    for one, two in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_proposals_are_those_of_the_stock_network(
    detector: PerImageRCNN, example: Callable[..., dict[str, object]]
) -> None:
    """The assignment changes losses, not what is proposed."""
    inputs = [example(0, [[5.0, 5, 25, 25]], [1])]
    images = detector.preprocess_image(inputs)
    features = detector.backbone(images.tensor)
    targets = [one["instances"] for one in inputs]
    with EventStorage():
        stock, _ = detector.proposal_generator(images, features, targets)
        detector.set_anchor_assigner("sim_ota")
        got, losses = detector.proposal_generator(images, features, targets)
    assert torch.equal(stock[0].proposal_boxes.tensor, got[0].proposal_boxes.tensor)
    assert all(loss.isfinite().all() and loss.requires_grad for loss in losses.values())
