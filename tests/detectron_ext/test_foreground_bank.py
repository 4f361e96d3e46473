"""Objects pasted densely, from labels and trusted pseudo-labels: exact pixels, true targets, a bank that resumes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.copy_paste import ObjectPatch, is_visible, paste
from detectron_ext.data import SemiSupervisedBatches, StepBatch
from detectron_ext.foreground_bank import CAPACITY, ForegroundBank
from detectron_ext.losses import IGNORE_LABEL, set_box_trained, set_weight
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny import NUM_CLASSES
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def pseudo_labels(boxes: list[list[float]], classes: list[int], scores: list[float]) -> Instances:
    targets = Instances((40, 60), gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    targets.gt_classes, targets.gt_score = torch.tensor(classes), torch.tensor(scores)
    return targets


def patch(class_id: int, *corners: tuple[int, int], side_px: int = 6) -> ObjectPatch:
    pixels = torch.full((3, side_px, side_px), 200 + class_id, dtype=torch.uint8)
    box = torch.tensor([0.0, 0, side_px, side_px])
    return ObjectPatch(pixels, box, class_id, torch.tensor(corners or [(0, 0)]))


def random_view(seed: int = 1) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 200, (3, 40, 60), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels)}


def test_objects_that_are_pasted_densely_are_targets_where_their_pixels_are_and_do_not_hide_each_other() -> None:
    view, own = random_view(), pseudo_labels([], [], [])
    own.gt_classes = own.gt_classes.long()
    set_box_trained(own, False)
    patches = [patch(0, (5, 7)), patch(1, (20, 9)), patch(2, (6, 8), (40, 30)), patch(1, (7, 7))]
    image, targets = view, own
    for one in patches:
        image, targets = paste(image, targets, one)
    # The third finds its first place taken and goes to the second; the last has no place.
    assert targets.gt_boxes.tensor.tolist() == [[5, 7, 11, 13], [20, 9, 26, 15], [40, 30, 46, 36]]
    assert targets.gt_classes.tolist() == [0, 1, 2]
    expected = view["image"].clone()
    for (x1, y1, x2, y2), class_id in zip(targets.gt_boxes.tensor.int().tolist(), (0, 1, 2), strict=True):
        expected[:, y1:y2, x1:x2] = 200 + class_id
    assert torch.equal(image["image"], expected)


def test_a_bank_keeps_trusted_pseudo_labels_only_with_the_pixels_that_the_teacher_saw() -> None:
    view = random_view()
    targets = pseudo_labels(
        [[10, 5, 20, 15], [30, 5, 40, 15], [10, 20, 20, 30], [1, 1, 59, 39], [40, 20, 50, 30]],
        [1, 1, IGNORE_LABEL, 1, 1],
        [0.95, 0.85, 0.99, 0.99, 0.97],  # trusted; not sure enough; no pseudo-label; too large; held back by a check
    )
    set_weight(targets, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.7]))
    bank = ForegroundBank(NUM_CLASSES, 1.0, 0.9, seed=1, trains_box=False)
    bank.add([view], [targets])
    [swapped] = bank.swap([patch(1)], (40, 60), (0, 0, 0))
    assert torch.equal(swapped.pixels, view["image"][:, 5:15, 10:20])
    assert swapped.box_xyxy.tolist() == [0, 0, 10, 10]
    assert (swapped.class_id, swapped.trains_box, swapped.score) == (1, False, pytest.approx(0.95))
    assert (swapped.corners_C2 <= torch.tensor([50, 30])).all()
    assert [len(kept) for kept in bank.state_dict()["objects"]] == [0, 1, 0]
    strong, own = random_view(2), pseudo_labels([], [], [])
    own.gt_classes = own.gt_classes.long()
    set_box_trained(own, False)
    set_weight(own, torch.zeros(0))
    pasted, with_target = paste(strong, own, swapped)
    x1, y1, x2, y2 = with_target.gt_boxes.tensor[0].int().tolist()
    assert torch.equal(pasted["image"][:, y1:y2, x1:x2], swapped.pixels)
    assert with_target.gt_trains_box.tolist() == [False]
    assert with_target.gt_score.tolist() == pytest.approx([0.95])
    assert with_target.gt_weight.tolist() == [1.0]


def test_a_labeled_object_is_swapped_by_chance_and_never_for_another_class() -> None:
    bank = ForegroundBank(NUM_CLASSES, 0.25, 0.9, seed=1, trains_box=False)
    for number in range(CAPACITY + 4):
        bank.add([random_view(number)], [pseudo_labels([[10, 5, 20, 15]], [1], [0.9 + number / 1000])])
    kept = [score for *_, score in bank.state_dict()["objects"][1]]
    assert kept == pytest.approx([0.9 + number / 1000 for number in range(4, CAPACITY + 4)])  # the newest
    swapped = [bank.swap([patch(0), patch(1)], (40, 60), (number, 0, 0)) for number in range(400)]
    assert all(other.score == 1.0 for other, _ in swapped)
    assert sum(one.score < 1.0 for _, one in swapped) / 400 == pytest.approx(0.25, abs=0.07)
    again = bank.swap([patch(0), patch(1)], (40, 60), (7, 0, 0))
    assert torch.equal(again[1].pixels, swapped[7][1].pixels)
    [too_small_a_view] = bank.swap([patch(1)], (8, 8), (0, 0, 0))
    assert too_small_a_view.score == 1.0


def test_a_region_counts_where_no_pasted_object_hides_more_than_30_percent_of_it() -> None:
    regions = torch.tensor([[10.0, 10, 20, 20], [50, 10, 60, 20]])
    assert is_visible(regions, torch.zeros(0, 4)).tolist() == [True, True]
    assert is_visible(regions, torch.tensor([[14.0, 12, 24, 17]])).tolist() == [True, True]  # 6 x 5 of 100
    assert is_visible(regions, torch.tensor([[14.0, 12, 24, 18], [0, 0, 5, 5]])).tolist() == [False, True]


def make_batches(**changes: Any) -> SemiSupervisedBatches:
    pixels = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    boxes = np.array([[8, 8, 20, 20]], dtype=np.float32)
    labeled = [Example(name, name, boxes, np.array([k], dtype=np.int64)) for k, name in enumerate("abc")]
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return SemiSupervisedBatches(
        labeled,
        [Example(name, name, *none) for name in "defg"],
        lambda uri: pixels,
        AugmentationConfig(64, 64),
        batch_sizes=(2, 2),
        burn_in_iterations=0,
        seed=5,
        paste_rare_frac=0.5,
        **changes,
    )


def test_several_objects_are_drawn_for_a_view_and_the_first_is_the_one_of_before() -> None:
    one, several = make_batches(), make_batches(paste_objects_per_view=5)
    for number in range(10):
        for single, many in zip(one[number].patches, several[number].patches, strict=True):
            assert (len(single), len(many)) in ((0, 0), (1, 5))
            assert all(torch.equal(own.pixels, other.pixels) for own, other in zip(single, many, strict=False))
            assert all(torch.equal(own.corners_C2, other.corners_C2) for own, other in zip(single, many, strict=False))


def test_going_on_from_a_checkpoint_repeats_the_run_with_dense_pasting_and_a_bank(
    batch_of: Callable[[int], StepBatch], tmp_path: Any
) -> None:
    """The untrained teacher's surest detections are trusted here, so that there is something to swap."""

    def trainer() -> TeacherStudentTrainer:
        run = new_trainer()
        run.bank = ForegroundBank(NUM_CLASSES, 0.7, 0.0, seed=3, trains_box=False)
        return run

    def batch(iteration: int) -> StepBatch:
        plain = batch_of(iteration)
        if not plain.unlabeled_ids:
            return plain
        corners = [(iteration, 3), (30, 30), (3, 40)]
        return replace(plain, patches=[tuple(patch(k, *corners) for k in range(NUM_CLASSES)) for _ in range(2)])

    whole, killed, resumed = (trainer() for _ in range(3))
    expected = run_steps(whole, batch, 6)
    run_steps(killed, batch, 4)
    assert killed.bank is not None
    assert sum(map(len, killed.bank.state_dict()["objects"])) > 0
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert run_steps(resumed, batch, 6) == expected[4:]
    for one, two in zip(resumed.teacher.parameters(), whole.teacher.parameters(), strict=True):
        assert torch.equal(one, two)
    without = new_trainer()
    assert run_steps(without, batch, 6) != expected  # the bank was used
    assert SCHEDULE.burn_in < 4
