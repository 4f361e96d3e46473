"""Doubt of the proposal network: entropy and weights written out, on background of unlabeled images only."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.data import StepBatch
from detectron_ext.inference import detect, prepare_image
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.objectness_doubt import background_weights, coarse_map, objectness_entropy, top_share_mean
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def entropy(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_entropy_is_that_of_the_likeliest_anchor_of_a_cell() -> None:
    p = torch.tensor([[[0.5, 0.1], [0.01, 0.9]], [[0.2, 0.3], [0.02, 0.2]]])
    found = objectness_entropy(torch.logit(p))
    assert found.flatten().tolist() == pytest.approx([1.0, entropy(0.3), entropy(0.02), entropy(0.9)], rel=1e-4)
    assert objectness_entropy(torch.full((1, 1, 1), 200.0)).item() == pytest.approx(0)  # finite where p is 1 in floats
    assert objectness_entropy(torch.full((1, 1, 1), -200.0)).item() == pytest.approx(0)


def test_an_anchor_has_the_weight_of_the_cell_of_its_center() -> None:
    doubt = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    anchors = torch.tensor([[0.0, 0, 16, 6], [7, 7, 11, 11], [-20, -20, 0, 0], [20, 10, 60, 40]])
    # Centers: (8, 3), (9, 9), (-10, -10) and (40, 25); 8 px a cell.
    assert background_weights(doubt, anchors, 8).tolist() == pytest.approx([0.8, 0.5, 0.9, 0.4])


def test_only_background_of_an_image_with_a_map_counts_less(detector: PerImageRCNN) -> None:
    """Two images of two anchors on two levels; the losses of each anchor written out."""
    rpn = detector.proposal_generator
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8]])), Boxes(torch.tensor([[8.0, 0, 16, 8], [0, 0, 8, 8]]))]
    logits = [torch.tensor([[0.5], [0.5]]), torch.tensor([[-1.0, 2.0], [-1.0, 2.0]])]
    labels = [torch.tensor([0, 0, 1])] * 2
    deltas = [torch.zeros(2, 1, 4), torch.zeros(2, 2, 4)]
    boxes = [torch.cat([level.tensor for level in anchors])] * 2

    def objectness() -> list[float]:
        found: list[float] = rpn.losses(anchors, logits, labels, deltas, boxes)["loss_rpn_cls"].tolist()
        return found

    terms = [math.log1p(math.exp(0.5)), math.log1p(math.exp(-1.0)), math.log1p(math.exp(-2.0))]
    count = rpn.batch_size_per_image
    assert objectness() == pytest.approx([sum(terms) / count] * 2, rel=1e-5)
    rpn.background_doubt = [None, torch.tensor([[0.25, 1.0]])]
    weighted = (0.75 * terms[0] + 0.0 * terms[1] + terms[2]) / count
    assert objectness() == pytest.approx([sum(terms) / count, weighted], rel=1e-5)


def doubting_trainer(**changes: Any) -> TeacherStudentTrainer:
    run = new_trainer(replace(SCHEDULE, **changes))
    run.spares_doubtful_background = True
    return run


def test_an_untrained_teacher_doubts_everything_and_labels_count_in_full(
    batch_of: Callable[[int], StepBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))
    plain, doubting = new_trainer(replace(SCHEDULE, burn_in=0)), doubting_trainer(burn_in=0)
    doubt = doubting.teacher.objectness_doubt(batch_of(2).unlabeled_weak)
    assert all(own.shape == (8, 8) and own.min() > 0.9 for own in doubt)  # 64 px; p near 0.5 everywhere
    expected, got = plain.step(batch_of(2)), doubting.step(batch_of(2))
    assert got.loss_sup == pytest.approx(expected.loss_sup, rel=1e-5)
    assert got.loss_unsup < expected.loss_unsup - 0.01


def test_going_on_from_a_checkpoint_repeats_the_run_with_doubt(
    batch_of: Callable[[int], StepBatch], tmp_path: Any
) -> None:
    whole, killed, resumed = (doubting_trainer() for _ in range(3))
    expected = run_steps(whole, batch_of, 5)
    run_steps(killed, batch_of, 3)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert run_steps(resumed, batch_of, 5) == expected[3:]


def test_the_metric_is_the_mean_of_the_most_doubtful_cells() -> None:
    doubt = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.8, 0.4]])
    assert top_share_mean(doubt, 0.01) == pytest.approx(0.9)  # at least one cell
    assert top_share_mean(doubt, 0.34) == pytest.approx((0.9 + 0.8 + 0.4) / 3)  # 2.04 cells: three
    assert top_share_mean(doubt, 1.0) == pytest.approx(float(doubt.mean()))


def test_the_kept_map_holds_the_most_doubtful_cell_of_each_field() -> None:
    doubt = torch.zeros(32, 64)
    doubt[5, 62] = 0.504
    kept = coarse_map(doubt)
    assert (kept.shape, kept.dtype) == ((16, 16), np.uint8)
    assert kept[2, 15] == 50
    assert int(kept.sum()) == 50


def auc(positive: list[float], negative: list[float]) -> float:
    return float(np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative]))


def test_a_small_share_finds_images_with_a_small_unsure_object_where_the_mean_does_not() -> None:
    """Maps of 20 x 30 cells with sure objects and a level of noise that differs by image; half hold an unsure object.

    The planted objects are four cells whose objectness is 0.3 to 0.7: too unsure to be reported, so missed boxes.
    """
    random = np.random.default_rng(5)
    values: dict[tuple[float, bool], list[float]] = {(frac, has): [] for frac in (0.01, 1.0) for has in (False, True)}
    for number in range(60):
        logits = random.normal(random.uniform(-7, -4), 0.7, (3, 20, 30))
        for _ in range(random.integers(0, 4)):  # sure objects are no doubt
            row, column = random.integers(0, 18), random.integers(0, 28)
            logits[0, row : row + 2, column : column + 2] = random.uniform(4, 7)
        if has_unsure := number % 2 == 0:
            row, column = random.integers(0, 19), random.integers(0, 29)
            logits[1, row : row + 2, column : column + 2] = random.uniform(-0.85, 0.85)
        doubt = objectness_entropy(torch.from_numpy(logits))
        for frac in (0.01, 1.0):
            values[frac, has_unsure].append(top_share_mean(doubt, frac))
    of_top, of_mean = (auc(values[frac, True], values[frac, False]) for frac in (0.01, 1.0))
    assert of_top > 0.95
    assert of_mean < of_top - 0.1


def test_a_detector_measures_doubt_only_when_asked_and_with_the_same_detections(detector: PerImageRCNN) -> None:
    """Sides of 64 and 90 px: the second is padded, and its padding says nothing of the image."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 90, 3), dtype=np.uint8)
    images = [
        prepare_image(pixels, AugmentationConfig(64, 96)),
        prepare_image(pixels[:, :64], AugmentationConfig(64, 96)),
    ]
    detector.eval()
    plain, measured = detect(detector, images, False), detect(detector, images, False, doubt_frac=0.1)
    for before, after, image in zip(plain, measured, images, strict=True):
        assert before.doubt is None
        for name in ("boxes_xyxy", "scores", "class_probs", "embedding"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        [padded] = detector.objectness_doubt([image.model_input])
        height, width = image.model_input["image"].shape[1:]
        cells = padded[: math.ceil(height / 8), : math.ceil(width / 8)].flatten().tolist()
        largest = sorted(cells, reverse=True)[: math.ceil(0.1 * len(cells))]
        assert after.doubt is not None
        assert after.doubt.top_mean == pytest.approx(sum(largest) / len(largest), abs=1e-6)
        assert after.filter_by_score(2).doubt is after.doubt
