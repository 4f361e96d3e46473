"""Several teachers: one place each, the mean of their class posteriors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from torchvision.ops import nms

from detectron_ext.data import StepBatch
from detectron_ext.mean_posterior import detect_by_mean_posterior
from detectron_ext.meta_arch import PerImageRCNN, build_detector
from tests.detectron_ext.tiny import NUM_CLASSES, TINY
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


@pytest.fixture
def teachers() -> list[PerImageRCNN]:
    """Three networks of other random weights, whose class scores are no longer alike."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        teacher = build_detector(TINY, "cpu").eval()
        with torch.no_grad():
            teacher.roi_heads.box_predictor.cls_score.weight.mul_(30)
        made.append(teacher)
    return made


def posterior_of(teacher: PerImageRCNN, view: dict[str, Any], proposals: Instances) -> torch.Tensor:
    heads = teacher.roi_heads
    features = teacher.backbone(teacher.preprocess_image([view]).tensor)
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [proposals.proposal_boxes])
    return torch.softmax(heads.box_predictor(heads.box_head(pooled))[0], dim=1)


@torch.no_grad()
def test_the_score_of_a_proposal_is_the_largest_mean_posterior(
    teachers: list[PerImageRCNN], example: Callable[..., dict[str, Any]]
) -> None:
    """Written out for one image: the first teacher's proposals and boxes, the mean of three posteriors, NMS."""
    view, first = example(0), teachers[0]
    images = first.preprocess_image([view])
    features = first.backbone(images.tensor)
    [proposals], _ = first.proposal_generator(images, features, None)
    mean_RK = sum(posterior_of(one, view, proposals) for one in teachers) / 3
    heads = first.roi_heads
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [proposals.proposal_boxes])
    deltas = heads.box_predictor(heads.box_head(pooled))[1]
    boxes = heads.box_predictor.box2box_transform.apply_deltas(deltas, proposals.proposal_boxes.tensor).clamp(0, 64)
    score_R, class_R = mean_RK[:, :NUM_CLASSES].max(dim=1)
    kept = []
    for k in range(NUM_CLASSES):
        own = ((class_R == k) & (score_R > 0.02)).nonzero().squeeze(1)
        own = own[(boxes[own, 2:] > boxes[own, :2]).all(dim=1)]
        kept += own[nms(boxes[own], score_R[own], TINY.nms_iou_threshold)].tolist()
    kept = sorted(kept, key=lambda r: -score_R[r].item())[: TINY.max_detections_per_image]
    assert 1 < len(kept) < len(score_R)

    [found] = detect_by_mean_posterior(teachers, [view])
    torch.testing.assert_close(found.scores, score_R[kept])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[kept])
    torch.testing.assert_close(found.class_probs, mean_RK[kept])
    [alone] = [instances for instances, _ in first([view])]
    assert len(alone) != len(found) or not torch.allclose(alone.scores, found.scores)


@torch.no_grad()
def test_one_teacher_detects_as_it_does_alone(
    teachers: list[PerImageRCNN], example: Callable[..., dict[str, Any]]
) -> None:
    """Images of two shapes, so that the order of the results is tested too."""
    views = [example(0), example(1, side_px=96), example(2)]
    for same in (teachers[:1], teachers[:1] * 2):
        for (expected, _), got in zip(teachers[0](views), detect_by_mean_posterior(same, views), strict=True):
            assert torch.equal(expected.pred_boxes.tensor, got.pred_boxes.tensor)
            assert torch.equal(expected.class_probs, got.class_probs)
            assert torch.equal(expected.pred_classes, got.pred_classes)


SEVERAL = replace(SCHEDULE, further_decays=(0.05, 0.15))


def test_every_teacher_is_its_own_moving_average(batch_of: Callable[[int], StepBatch]) -> None:
    """At t = 0 and 1 the warm-up allows 1/10 and 2/11; a smaller decay stays as it is."""
    run = new_trainer(SEVERAL)
    run_steps(run, batch_of, 2)
    for stop, decays in ((3, (1 / 10, 0.05, 1 / 10)), (4, (2 / 11, 0.05, 0.15))):
        teachers = [run.teacher, *run.further_teachers]
        before = [[p.clone() for p in one.parameters()] for one in teachers]
        run_steps(run, batch_of, stop)
        for decay, one, old in zip(decays, teachers, before, strict=True):
            for own, was, followed in zip(one.parameters(), old, run.student.parameters(), strict=True):
                torch.testing.assert_close(own, decay * was + (1 - decay) * followed)


def test_pseudo_labels_are_made_by_all_teachers(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SEVERAL, burn_in=0, rampup=0))
    run_steps(run, batch_of, 1)
    batch = batch_of(2)
    with torch.no_grad():
        run.further_teachers[0].roi_heads.box_predictor.cls_score.bias[2] += 50.0  # sure of class 2 everywhere
        run.further_teachers[1].roi_heads.box_predictor.cls_score.bias[2] += 50.0
    log = run.step(batch)
    assert log.pseudo_boxes_K[2] > 0
    assert log.pseudo_boxes_K[:2] == [0.0, 0.0]


def test_a_run_that_goes_on_holds_all_teachers(batch_of: Callable[[int], StepBatch], tmp_path: Any) -> None:
    whole, killed = new_trainer(SEVERAL), new_trainer(SEVERAL)
    run_steps(whole, batch_of, 6)
    run_steps(killed, batch_of, 4)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed = new_trainer(SEVERAL)
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    run_steps(resumed, batch_of, 6)
    for one, two in zip(
        (resumed.teacher, *resumed.further_teachers), (whole.teacher, *whole.further_teachers), strict=True
    ):
        for own, expected in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
