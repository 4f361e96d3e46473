"""Pasted objects: exact pixels and target, rare classes first, nothing hidden, boxes trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.copy_paste import ObjectPatch, RareObjectSampler, cut_out, paste
from detectron_ext.data import SemiSupervisedBatches, StepBatch
from detectron_ext.losses import CROWD_LABEL, set_box_trained
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer


def targets_of(boxes: list[list[float]]) -> Instances:
    targets = Instances((40, 50))
    targets.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    targets.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    set_box_trained(targets, False)
    return targets


def patch_at(*corners: tuple[int, int]) -> ObjectPatch:
    """6 px high and 10 px wide; the object begins half a pixel inside."""
    pixels = torch.arange(180, dtype=torch.uint8).reshape(3, 6, 10)
    return ObjectPatch(pixels, torch.tensor([0.5, 0.5, 9.5, 6.0]), 2, torch.tensor(corners))


def test_a_pasted_object_has_its_pixels_and_its_target_and_nothing_else_changes() -> None:
    image = torch.full((3, 40, 50), 255, dtype=torch.uint8)
    patch = patch_at((7, 11))
    view, targets = paste({"image": image}, targets_of([[30, 30, 40, 40]]), patch)
    expected = torch.full((3, 40, 50), 255, dtype=torch.uint8)
    expected[:, 11:17, 7:17] = patch.pixels
    assert torch.equal(view["image"], expected)
    assert (image == 255).all()  # the given view is not touched
    assert targets.gt_boxes.tensor.tolist() == [[30, 30, 40, 40], [7.5, 11.5, 16.5, 17.0]]
    assert targets.gt_classes.tolist() == [0, 2]
    assert targets.gt_trains_box.tolist() == [False, True]


def test_an_object_goes_where_no_target_is_covered_by_more_than_30_percent() -> None:
    """A box of 10 x 10: an overlap of 5 x 6 is 30 % of it, one of 6 x 6 is more."""
    view = {"image": torch.zeros(3, 40, 50, dtype=torch.uint8)}
    box = [10.0, 10.0, 20.0, 20.0]
    _, refused = paste(view, targets_of([box]), patch_at((14, 12)))
    assert len(refused) == 1
    _, accepted = paste(view, targets_of([box]), patch_at((15, 12)))
    assert accepted.gt_boxes.tensor[1].tolist() == [15.5, 12.5, 24.5, 18.0]
    _, second = paste(view, targets_of([box]), patch_at((14, 12), (0, 0), (30, 30)))
    assert second.gt_boxes.tensor[1].tolist() == [0.5, 0.5, 9.5, 6.0]
    _, alone = paste(view, targets_of([]), patch_at((14, 12)))
    assert alone.gt_classes.tolist() == [2]


def test_an_object_is_cut_out_with_all_pixels_that_its_box_touches() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    box = np.array([4.25, 5.5, 12.5, 10.0], dtype=np.float32)
    patch = cut_out(pixels, box, 1, (20, 25), np.random.default_rng(2))
    assert patch is not None
    np.testing.assert_array_equal(patch.pixels.numpy(), pixels[5:10, 4:13].transpose(2, 0, 1))
    assert patch.box_xyxy.tolist() == [0.25, 0.5, 8.5, 5.0]
    assert patch.corners_C2.min() >= 0
    assert (patch.corners_C2 <= torch.tensor([25 - 9, 20 - 5])).all()
    again = cut_out(pixels, box, 1, (20, 25), np.random.default_rng(2))
    assert again is not None
    assert torch.equal(again.corners_C2, patch.corners_C2)


@pytest.mark.parametrize(
    ("box", "view_size_px"), [([0, 0, 3, 20], (40, 40)), ([0, 0, 30, 10], (40, 29)), ([0, 0, 10, 30], (29, 40))]
)
def test_an_object_that_is_tiny_or_does_not_fit_is_left(box: list[float], view_size_px: tuple[int, int]) -> None:
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    assert cut_out(pixels, np.array(box, dtype=np.float32), 0, view_size_px, np.random.default_rng(1)) is None


def example(name: str, class_ids: list[int]) -> Example:
    boxes = np.tile(np.array([[8, 8, 24, 24]], dtype=np.float32), (len(class_ids), 1))
    return Example(name, name, boxes, np.array(class_ids, dtype=np.int64))


def test_classes_are_drawn_in_inverse_proportion_to_their_boxes() -> None:
    """6 boxes of class 0, 2 of class 1, 1 of class 3: chances 1/10, 3/10, 6/10."""
    sampler = RareObjectSampler([example("a", [0, 0, 0, 0, 1]), example("b", []), example("c", [0, 3, 0, 1])])
    rng = np.random.default_rng(3)
    drawn = [sampler.draw(rng) for _ in range(6000)]
    counts = {place: drawn.count(place) / len(drawn) for place in set(drawn)}
    assert counts[2, 1] == pytest.approx(0.6, abs=0.025)
    assert counts[0, 4] == pytest.approx(0.15, abs=0.02)
    assert counts[2, 3] == pytest.approx(0.15, abs=0.02)
    assert counts[0, 0] == pytest.approx(0.1 / 6, abs=0.008)
    assert RareObjectSampler([example("b", [])]).draw(rng) is None


def test_a_crowd_region_is_no_object_to_paste() -> None:
    sampler, rng = RareObjectSampler([example("a", [0, CROWD_LABEL, 1])]), np.random.default_rng(3)
    assert {sampler.draw(rng) for _ in range(200)} == {(0, 0), (0, 2)}
    assert RareObjectSampler([example("a", [CROWD_LABEL])]).draw(rng) is None


def make_batches(paste_rare_frac: float) -> SemiSupervisedBatches:
    pixels = np.random.default_rng(4).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return SemiSupervisedBatches(
        [example("a", [0]), example("b", [1, 0])],
        [example(name, []) for name in "cdef"],
        lambda uri: pixels,
        AugmentationConfig(32, 48, scale_jitter_frac=0.1),
        batch_sizes=(2, 4),
        burn_in_iterations=0,
        seed=5,
        paste_rare_frac=paste_rare_frac,
    )


def test_the_views_do_not_depend_on_what_is_pasted_and_a_batch_repeats() -> None:
    off, on, again = (make_batches(frac)[3] for frac in (0.0, 0.5, 0.5))
    assert off.patches == []
    for one, two in zip(off.labeled + off.unlabeled_strong, on.labeled + on.unlabeled_strong, strict=True):
        assert torch.equal(one["image"], two["image"])
    pasted = [patches for number in range(40) for patches in make_batches(0.5)[number].patches]
    assert sum(len(patches) for patches in pasted) / len(pasted) == pytest.approx(0.5, abs=0.12)
    for one, two in zip(on.patches, again.patches, strict=True):
        for own, other in zip(one, two, strict=True):
            assert torch.equal(own.pixels, other.pixels)
            assert torch.equal(own.corners_C2, other.corners_C2)


def test_only_the_box_of_a_pasted_object_is_trained(batch_of: Callable[[int], StepBatch]) -> None:
    """No labeled boxes here: regression has a gradient from what is pasted, and from nothing else."""
    for patch in (None, patch_at((20, 20))):
        run = new_trainer(replace(SCHEDULE, burn_in=0, rampup=0), threshold=0.5)
        patches = [() if patch is None else (patch,), ()]
        batch = replace(batch_of(2), labeled=batch_of(2).labeled[1:], patches=patches)
        log = run.step(batch)
        assert np.isfinite(log.loss_unsup)
        for layer in (
            run.student.roi_heads.box_predictor.bbox_pred,
            run.student.proposal_generator.rpn_head.anchor_deltas,
        ):
            assert bool(layer.weight.grad.any()) == (patch is not None)


def test_without_a_patch_every_bit_is_as_without_pasting(batch_of: Callable[[int], StepBatch]) -> None:
    runs = [new_trainer(replace(SCHEDULE, burn_in=0, rampup=0)) for _ in range(2)]
    logs: list[Any] = [
        run.step(replace(batch_of(2), patches=patches)) for run, patches in zip(runs, ([], [(), ()]), strict=True)
    ]
    assert logs[0] == logs[1]
    for one, two in zip(runs[0].student.parameters(), runs[1].student.parameters(), strict=True):
        assert torch.equal(one, two)
