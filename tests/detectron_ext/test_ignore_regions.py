"""Where the teacher is unsure, the student learns neither object nor background."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from detectron_ext.losses import CROWD_LABEL, IGNORE_LABEL, foreground, overlaps_ignored
from detectron_ext.meta_arch import PerImageRCNN

SIZE_PX = 64
FOREGROUND, IGNORED = [5.0, 5, 25, 25], [30.0, 30, 60, 50]


def make_targets(boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances((SIZE_PX, SIZE_PX))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def iou_with(box: list[float], boxes: Boxes) -> torch.Tensor:
    return pairwise_iou(Boxes(torch.tensor([box])), boxes)[0]


def test_near_is_near_an_unsure_box_and_no_object() -> None:
    boxes = Boxes(torch.tensor([FOREGROUND, IGNORED, [0.0, 50, 9, 60]]))
    both = make_targets([FOREGROUND, IGNORED], [1, IGNORE_LABEL])
    assert overlaps_ignored(boxes, both, 0.5).tolist() == [False, True, False]
    assert (
        overlaps_ignored(boxes, make_targets([IGNORED, IGNORED], [1, IGNORE_LABEL]), 0.5).tolist() == [False] * 3
    )  # an object wins
    assert overlaps_ignored(boxes, make_targets([IGNORED], [1]), 0.5).tolist() == [False] * 3
    assert overlaps_ignored(boxes, make_targets([], []), 0.5).tolist() == [False] * 3
    assert overlaps_ignored(boxes, make_targets([IGNORED], [IGNORE_LABEL]), 0.5).tolist() == [False, True, False]
    assert [len(image) for image in foreground([both])] == [1]


CROWD = [30.0, 0, 64, 64]
INSIDE, HALF_INSIDE = [32.0, 40, 44, 52], [24.0, 40, 36, 52]  # IoA 1 and 0.5; IoU with the region 0.07 at most


def test_inside_a_crowd_region_is_measured_by_the_box_s_own_area() -> None:
    boxes = Boxes(torch.tensor([INSIDE, HALF_INSIDE, FOREGROUND]))
    targets = make_targets([FOREGROUND, CROWD], [1, CROWD_LABEL])
    assert overlaps_ignored(boxes, targets, 0.5).tolist() == [True, False, False]
    with_object = make_targets([INSIDE, CROWD], [1, CROWD_LABEL])
    assert overlaps_ignored(boxes, with_object, 0.5).tolist() == [False, False, False]  # an object wins
    assert [len(image) for image in foreground([targets])] == [1]


@pytest.fixture
def anchors(detector: PerImageRCNN) -> list[Boxes]:
    rpn = detector.proposal_generator
    shapes = [torch.zeros(1, 1, SIZE_PX // stride, SIZE_PX // stride) for stride in (4, 8, 16, 32, 64)]
    made: list[Boxes] = rpn.anchor_generator(shapes)
    return made


def test_anchors_near_an_unsure_box_are_ignored(detector: PerImageRCNN, anchors: list[Boxes]) -> None:
    rpn, every = detector.proposal_generator, Boxes.cat(anchors)
    torch.manual_seed(0)
    [plain], _ = rpn.label_and_sample_anchors(anchors, [make_targets([FOREGROUND], [1])])
    torch.manual_seed(0)
    [spared], _ = rpn.label_and_sample_anchors(anchors, [make_targets([FOREGROUND, IGNORED], [1, IGNORE_LABEL])])
    near = (iou_with(IGNORED, every) >= 0.3) & (iou_with(FOREGROUND, every) < 0.3)
    assert (plain[near] == 0).any()  # background, were the teacher not unsure
    assert (spared[near] == -1).all()
    assert torch.equal(plain[~near], spared[~near])
    assert (spared == 1).any()


def test_anchors_inside_a_crowd_region_are_ignored(detector: PerImageRCNN, anchors: list[Boxes]) -> None:
    rpn, every = detector.proposal_generator, Boxes.cat(anchors)
    torch.manual_seed(0)
    [plain], _ = rpn.label_and_sample_anchors(anchors, [make_targets([FOREGROUND], [1])])
    torch.manual_seed(0)
    [spared], _ = rpn.label_and_sample_anchors(anchors, [make_targets([FOREGROUND, CROWD], [1, CROWD_LABEL])])
    x1, y1, x2, y2 = every.tensor.unbind(1)
    width = (torch.minimum(x2, torch.tensor(CROWD[2])) - torch.maximum(x1, torch.tensor(CROWD[0]))).clamp(min=0)
    height = (torch.minimum(y2, torch.tensor(CROWD[3])) - torch.maximum(y1, torch.tensor(CROWD[1]))).clamp(min=0)
    inside = (width * height >= 0.7 * every.area()) & (iou_with(FOREGROUND, every) < 0.3)
    assert (plain[inside] == 0).any()
    assert (spared[inside] == -1).all()
    assert torch.equal(plain[~inside], spared[~inside])


def sample_proposals(detector: PerImageRCNN, boxes: list[list[float]], truth: Instances) -> Instances:
    proposals = Instances((SIZE_PX, SIZE_PX))
    proposals.proposal_boxes = Boxes(torch.tensor(boxes))
    proposals.objectness_logits = torch.zeros(len(boxes))
    with EventStorage():
        [drawn] = detector.roi_heads.label_and_sample_proposals([proposals], [truth])
    return drawn


def test_proposals_near_an_unsure_box_are_not_sampled(detector: PerImageRCNN) -> None:
    boxes = [FOREGROUND, IGNORED, [0.0, 50, 9, 60]]
    drawn = sample_proposals(detector, boxes, make_targets([FOREGROUND, IGNORED], [1, IGNORE_LABEL]))
    assert iou_with(IGNORED, drawn.proposal_boxes).max() == 0
    assert set(drawn.gt_classes.tolist()) == {1, detector.roi_heads.num_classes}
    assert len(sample_proposals(detector, boxes, make_targets([FOREGROUND], [1]))) == len(drawn) + 1


def test_proposals_inside_a_crowd_region_are_not_sampled(detector: PerImageRCNN) -> None:
    boxes = [FOREGROUND, INSIDE, [0.0, 50, 9, 60]]
    drawn = sample_proposals(detector, boxes, make_targets([FOREGROUND, CROWD], [1, CROWD_LABEL]))
    assert iou_with(INSIDE, drawn.proposal_boxes).max() == 0
    assert len(sample_proposals(detector, boxes, make_targets([FOREGROUND], [1]))) == len(drawn) + 1


def test_an_image_of_unsure_boxes_alone_has_finite_losses(
    detector: PerImageRCNN, example: Callable[..., dict[str, Any]]
) -> None:
    assert len(sample_proposals(detector, [IGNORED], make_targets([IGNORED], [IGNORE_LABEL]))) == 0
    whole = example(1, [[0, 0, SIZE_PX, SIZE_PX], IGNORED], [IGNORE_LABEL, CROWD_LABEL])
    with EventStorage():
        losses = detector.train()([whole])
    assert torch.isfinite(losses.total()).all()
    assert losses.rpn_boxes_N.tolist() == losses.roi_boxes_N.tolist() == [0.0]
