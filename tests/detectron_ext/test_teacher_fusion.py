"""Weighted box fusion written out, mirrored views, and the weights of earlier teachers."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pseudo_labels import pseudo_label
from detectron_ext.teacher_fusion import FusionSpec, TeacherFusion, mirror
from detectron_ext.trainer import TeacherStudentTrainer
from detectron_ext.weighted_box_fusion import fuse
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def detections(*rows: tuple[list[float], float, int]) -> Instances:
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([box for box, _, _ in rows]).reshape(-1, 4))
    found.scores = torch.tensor([score for _, score, _ in rows])
    found.pred_classes = torch.tensor([class_id for *_, class_id in rows], dtype=torch.int64)
    return found


def test_boxes_of_one_object_are_averaged_by_score_and_weight() -> None:
    """Written out: one object that both views see, one that only the second sees, and two classes in one place."""
    first = detections(([0.0, 0, 10, 10], 0.8, 0), ([30.0, 0, 40, 10], 0.5, 0))
    second = detections(([1.0, 0, 11, 10], 0.6, 0), ([0.0, 20, 10, 30], 0.9, 0), ([30.0, 0, 40, 10], 0.4, 1))
    fused = fuse([first, second], [1.0, 0.5], 0.5)
    moved = 0.5 * 0.6 / (0.8 + 0.5 * 0.6)
    expected = [
        ([moved, 0, 10 + moved, 10], (0.8 + 0.5 * 0.6) / 1.5, 0),
        ([30, 0, 40, 10], 0.5 / 1.5, 0),
        ([0, 20, 10, 30], 0.5 * 0.9 / 1.5, 0),
        ([30, 0, 40, 10], 0.5 * 0.4 / 1.5, 1),
    ]
    assert fused.pred_classes.tolist() == [class_id for *_, class_id in expected]
    assert fused.scores.tolist() == pytest.approx([score for _, score, _ in expected])
    torch.testing.assert_close(fused.pred_boxes.tensor, torch.tensor([box for box, _, _ in expected]))


def test_a_box_meets_the_fused_box_and_not_the_first_one() -> None:
    """The third is 4 px from the first (IoU 3/7) and 3 px from the mean of both (7/13): over 0.5 only there."""
    rows = [([0.0, 0, 10, 10], 0.8, 0), ([2.0, 0, 12, 10], 0.8, 0), ([4.0, 0, 14, 10], 0.4, 0)]
    [fused] = fuse([detections(row) for row in rows], [1.0] * 3, 0.5).scores.tolist()
    assert fused == pytest.approx(2.0 / 3)


def test_a_view_with_several_boxes_of_one_object_counts_once() -> None:
    rows = [([0.0, 0, 10, 10], 0.9, 0), ([1.0, 0, 11, 10], 0.6, 0)]
    [score] = fuse([detections(*rows)], [1.0], 0.5).scores.tolist()
    assert score == pytest.approx(0.75)
    assert len(fuse([detections(), detections()], [1.0, 1.0], 0.5)) == 0


def test_one_view_without_overlaps_stays_as_it_is() -> None:
    alone = detections(([0.0, 0, 10, 10], 0.9, 1), ([20.0, 5, 50, 35], 0.7, 0))
    fused = fuse([alone], [1.0], 0.55)
    assert torch.equal(fused.scores, alone.scores)
    assert torch.equal(fused.pred_boxes.tensor, alone.pred_boxes.tensor)
    assert torch.equal(fused.pred_classes, alone.pred_classes)


def spec(mirrors: bool = False, max_earlier: int = 0, every: int = 2, decay: float = 3.0) -> FusionSpec:
    return FusionSpec(mirrors, max_earlier, every, decay, iou_threshold=0.55)


@torch.no_grad()
def test_a_view_and_its_mirror_image_have_mirrored_detections(
    detector: PerImageRCNN, example: Callable[..., dict[str, Any]]
) -> None:
    """Whatever the network: both answers are fused of the same two, so left and right have no part in them."""
    detector.eval()
    view, fusion = example(3), TeacherFusion(spec(mirrors=True))

    def detect(inputs: list[dict[str, Any]]) -> list[Instances]:
        return [found for found, _ in detector(inputs)]

    [one] = fusion.detect(detect, [view])
    [two] = fusion.detect(detect, [{**view, "image": view["image"].flip(2)}])
    [plain] = detect([view])
    assert not torch.equal(one.pred_boxes.tensor, plain.pred_boxes.tensor)
    torch.testing.assert_close(two.scores, one.scores)
    torch.testing.assert_close(mirror(two).pred_boxes.tensor, one.pred_boxes.tensor)


class Says:
    """An earlier teacher with one detection of a given score."""

    def __init__(self, score: float) -> None:
        self.score = score

    def __call__(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, None]]:
        return [(detections(([0.0, 0, 10, 10], self.score, 0)), None) for _ in inputs]


def test_earlier_teachers_are_kept_at_intervals_and_fade_with_age() -> None:
    """Kept at 0, 2 and 4, of which the two newest remain: at 5 they are 3 and 1 iterations old."""
    fusion = TeacherFusion(spec(max_earlier=2))
    for elapsed in range(6):
        fusion.begin_step(Says(elapsed / 10), elapsed)  # type: ignore[arg-type]
    [fused] = fusion.detect(lambda _: [detections(([0.0, 0, 10, 10], 0.9, 0))], [{}])
    older, newer = math.exp(-3 / 3), math.exp(-1 / 3)
    assert fused.scores.item() == pytest.approx((0.9 + older * 0.2 + newer * 0.4) / (1 + older + newer))
    fusion.begin_step(Says(0.1), 100_001)  # type: ignore[arg-type]
    [fused] = fusion.detect(lambda _: [detections(([0.0, 0, 10, 10], 0.9, 0))], [{}])
    assert fused.scores.item() == pytest.approx(0.9)  # the others weigh less than MIN_WEIGHT


def fusing_trainer() -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, burn_in=0))
    run.fusion = TeacherFusion(spec(mirrors=True, max_earlier=2, every=1))
    return run


def test_going_on_from_a_checkpoint_repeats_the_run_with_fusion(
    batch_of: Callable[[int], StepBatch], tmp_path: Any
) -> None:
    def batch(iteration: int) -> StepBatch:
        return batch_of(iteration + SCHEDULE.burn_in)

    whole, killed, resumed = (fusing_trainer() for _ in range(3))
    expected = run_steps(whole, batch, 3)
    run_steps(killed, batch, 2)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert run_steps(resumed, batch, 3) == expected[2:]


def test_pseudo_labels_are_made_of_the_fused_detections(batch_of: Callable[[int], StepBatch]) -> None:
    """With their regions, which are read where the fused boxes lie."""
    run, batch = fusing_trainer(), batch_of(SCHEDULE.burn_in)
    assert run.fusion is not None
    found = pseudo_label(run.teacher, batch.unlabeled_weak, run.threshold, fusion=run.fusion, wants_regions=True)
    with torch.no_grad():
        fused = run.fusion.detect(lambda inputs: [one for one, _ in run.teacher(inputs)], batch.unlabeled_weak)
    assert found.regions is not None
    for own, expected, regions in zip(found.targets, fused, found.regions, strict=True):
        assert torch.equal(own.gt_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(own.gt_score, expected.scores)
        assert len(regions.features_RF) == min(len(expected), 20)
