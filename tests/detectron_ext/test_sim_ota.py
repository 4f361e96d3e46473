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
from detectron_ext.sim_ota import assign, assign_regions
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


def assign_regions_by_loop(
    regions: list[list[float]],
    log_probs: list[list[float]],
    overlaps: list[list[float]],
    targets: list[list[float]],
    classes: list[int],
) -> list[int]:
    """The rule for regions, one region and one target at a time; ``overlaps`` by target and region."""
    cost, candidates = {}, set()
    for r, (left, top, right, bottom) in enumerate(regions):
        x, y = (left + right) / 2, (top + bottom) / 2
        for g, target in enumerate(targets):
            inside = target[0] < x < target[2] and target[1] < y < target[3]
            if inside:
                candidates.add(r)
            cost[r, g] = -log_probs[r][classes[g]] - 3 * math.log(overlaps[g][r] + 1e-8) + (0 if inside else 1e5)
    wanted_by: dict[int, list[int]] = {r: [] for r in candidates}
    for g in range(len(targets)):
        k = max(int(sum(sorted((overlaps[g][r] for r in candidates), reverse=True)[:10])), 1)
        for r in sorted(candidates, key=lambda r: (cost[r, g], r))[:k]:
            wanted_by[r].append(g)
    matched = [-1] * len(regions)
    for r, wanting in wanted_by.items():
        if wanting:
            matched[r] = wanting[0] if len(wanting) == 1 else min(range(len(targets)), key=lambda g: cost[r, g])
    return matched


def made_regions(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """40 regions around 5 overlapping targets of 3 classes: regions, log posteriors, targets, classes."""
    generator = torch.Generator().manual_seed(seed)
    corners = 40 * torch.rand(5, 2, generator=generator)
    targets = torch.cat([corners, corners + 8 + 16 * torch.rand(5, 2, generator=generator)], dim=1)
    regions = targets[torch.randint(5, (40,), generator=generator)] + 4 * torch.randn(40, 4, generator=generator)
    regions[:, 2:] = torch.maximum(regions[:, 2:], regions[:, :2] + 1)
    log_probs = (3 * torch.randn(40, 4, generator=generator)).log_softmax(dim=1)
    return regions, log_probs, targets, torch.randint(3, (5,), generator=generator)


@pytest.mark.parametrize("seed", range(6))
def test_regions_equal_a_loop(seed: int) -> None:
    regions, log_probs, targets, classes = made_regions(seed)
    overlaps = torch.tensor([[iou(target, region) for region in regions.tolist()] for target in targets.tolist()])
    got = assign_regions(Boxes(regions).get_centers(), log_probs, overlaps, targets, classes).tolist()
    assert got == assign_regions_by_loop(
        regions.tolist(), log_probs.tolist(), overlaps.tolist(), targets.tolist(), classes.tolist()
    )
    assert max(got.count(g) for g in range(5)) > 1


def test_regions_far_from_every_target_and_images_without_targets_match_nothing() -> None:
    regions, log_probs, targets, classes = made_regions(0)
    far = Boxes(regions + 500).get_centers()
    assert (assign_regions(far, log_probs, torch.zeros(5, 40), targets, classes) == -1).all()
    assert (assign_regions(far, log_probs, torch.zeros(0, 40), targets[:0], classes[:0]) == -1).all()


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


def test_the_second_stage_labels_by_its_own_predictions(by_cost: PerImageRCNN) -> None:
    """Chosen regions have their target's class and box; others on an object are left out, the rest is background."""
    heads = by_cost.roi_heads
    objects, classes = [[5.0, 5, 25, 25], [30.0, 20, 60, 50]], [1, 0]
    targets = targets_of(objects, classes)
    random = torch.Generator().manual_seed(1)
    near = torch.tensor(objects * 20) + 3 * torch.randn(40, 4, generator=random)
    away = torch.tensor([[2.0, 45, 12, 60], [45.0, 2, 60, 12]])
    proposals = Instances((64, 64))
    proposals.proposal_boxes = Boxes(torch.cat([near, away]))
    proposals.objectness_logits = torch.zeros(42)
    features = {name: torch.randn(1, 32, 64 // stride, 64 // stride, generator=random) for name, stride in
                zip(heads.box_in_features, (4, 8, 16, 32), strict=True)}  # fmt: skip
    with EventStorage():
        [sampled] = heads.label_and_sample_by_cost(features, [proposals], [targets])

    boxes = torch.cat([near, away, torch.tensor(objects)])  # the objects' own boxes are proposals, too
    with torch.no_grad():
        logits, deltas = heads.box_predictor(heads.region_features(features, [Boxes(boxes)])[0])
    refined = heads.box_predictor.box2box_transform.apply_deltas(deltas, boxes).tolist()
    overlaps = [[iou(target, box) for box in refined] for target in objects]
    expected = assign_regions_by_loop(boxes.tolist(), logits.log_softmax(1).tolist(), overlaps, objects, classes)
    own = {tuple(box): g for box, g in zip(boxes.tolist(), expected, strict=True)}
    assert len(sampled) < len(boxes)
    kept = [tuple(box) for box in sampled.proposal_boxes.tensor.tolist()]
    for box, class_id, target in zip(kept, sampled.gt_classes.tolist(), sampled.gt_boxes.tensor.tolist(), strict=True):
        assert class_id == (classes[own[box]] if own[box] >= 0 else heads.num_classes)
        if own[box] >= 0:
            assert target == objects[own[box]]
    assert sum(g >= 0 for g in expected) == (sampled.gt_classes < heads.num_classes).sum() > 0
    left_out = [box for box, g in own.items() if g < 0 and max(iou(list(box), target) for target in objects) >= 0.5]
    assert left_out
    assert not set(left_out) & set(kept)
    assert {tuple(box) for box in away.tolist()} <= set(kept)
    with EventStorage():
        [nothing] = heads.label_and_sample_by_cost(features, [proposals], [targets_of([], [])])
    assert (nothing.gt_classes == heads.num_classes).all()
    assert not nothing.has("gt_boxes")


def cost_trainer(part: str) -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, burn_in=1))
    getattr(run.student, f"set_{part}_assigner")("sim_ota")
    return run


@pytest.mark.parametrize("part", ["anchor", "roi"])
def test_training_by_cost_goes_on_as_an_uninterrupted_one(part: str, batch_of: Callable[[int], StepBatch]) -> None:
    whole, killed, resumed = (cost_trainer(part) for _ in range(3))
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
