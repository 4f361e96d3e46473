"""Activation and similarity against written-out sums; planted false boxes are found; training resumes with it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa
from sklearn.metrics import roc_auc_score

from detectron_ext.activation_map import activation_energy, activation_in_boxes
from detectron_ext.data import StepBatch
from detectron_ext.losses import IGNORE_LABEL, pseudo_label_weight, set_weight
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pseudo_label_checks import PseudoLabelCheck, RegionPrototypes, background_boxes
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext.tiny import NUM_CLASSES
from tests.detectron_ext.tiny_run import new_trainer, run_steps

NUM_FEATURES = 256


def new_check(mode: str = "veto", threshold: float = 0.2) -> PseudoLabelCheck:
    return PseudoLabelCheck(mode, threshold, RegionPrototypes(NUM_CLASSES, NUM_FEATURES), seed=3)


def test_energy_is_the_squared_projection_on_the_first_principal_component() -> None:
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 4, 6)))
    cells = features.numpy().reshape(5, 24).T
    centered = cells - cells.mean(axis=0)
    direction = np.linalg.svd(centered)[2][0]
    expected = (centered @ direction) ** 2
    np.testing.assert_allclose(
        activation_energy(features.float()), (expected / expected.sum()).reshape(4, 6), atol=1e-6
    )
    assert torch.equal(activation_energy(torch.ones(3, 2, 5)), torch.full((2, 5), 0.1, dtype=torch.float64))


def test_activation_compares_the_share_of_energy_with_the_share_of_area() -> None:
    """A map of 2 x 4 cells of 10 px with all its energy in one cell, 0.7 of it, and 0.3 in its right neighbor."""
    energy = torch.zeros(2, 4)
    energy[1, 1], energy[1, 2] = 0.7, 0.3
    boxes = torch.tensor(
        [
            [10.0, 10, 20, 20],  # the first cell: e = 0.7, a = 1/8
            [15, 10, 25, 20],  # half of each: e = 0.5, a = 1/8
            [0, 0, 40, 20],  # everything: e = a = 1
            [0, 0, 10, 20],  # nothing: e = 0, a = 1/4
            [5, 5, 5, 9],  # no area
        ]
    )
    expected = [0.7 / 0.825, 0.5 / 0.625, 0.5, 0.0, 0.0]
    assert activation_in_boxes(energy, boxes, 10).tolist() == pytest.approx(expected)


def test_prototypes_are_mean_directions_that_move_with_momentum() -> None:
    prototypes = RegionPrototypes(2, 2)
    prototypes.update(torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 2.0]]), torch.tensor([0, 2, 2]))
    # Class 1 has no prototype: nothing speaks against its regions. Cosines with the others: 0.8 and 0.6.
    got = prototypes.similarity(torch.tensor([[4.0, 3.0], [4.0, 3.0], [4.0, 3.0]]), torch.tensor([0, 2, 1]))
    odds = math.exp((0.8 - 0.6) / 0.1)
    assert got.tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 1.0])
    prototypes.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    # 0.1 of the first update remains times 0.9, 0.1 of the second is new: directions (0.09, 0.1) and (0, 1).
    cosine = (4 * 0.09 + 3 * 0.1) / 5 / math.hypot(0.09, 0.1)
    odds = math.exp((cosine - 0.6) / 0.1)
    assert prototypes.similarity(torch.tensor([[4.0, 3.0]]), torch.tensor([0])).item() == pytest.approx(
        odds / (1 + odds)
    )
    copy = RegionPrototypes(2, 2)
    copy.load_state_dict(prototypes.state_dict())
    assert torch.equal(copy.state_dict()["sum_KF"], prototypes.state_dict()["sum_KF"])


def test_background_boxes_keep_their_size_and_lie_where_no_object_is() -> None:
    objects = torch.tensor([[10.0, 10, 40, 30], [50, 50, 60, 90], [0, 0, 120, 95]])
    found = background_boxes(objects[:2], (100, 120), torch.Generator().manual_seed(1))
    torch.testing.assert_close(found[:, 2:] - found[:, :2], torch.tensor([[30.0, 20], [10, 40]]))
    assert pairwise_ioa(Boxes(found), Boxes(objects[:2])).max() <= 0.2
    assert pairwise_ioa(Boxes(objects[:2]), Boxes(found)).max() <= 0.2
    assert found.min() >= 0
    assert (found[:, 2:] <= torch.tensor([120.0, 100.0])).all()
    assert len(background_boxes(objects, (100, 120), torch.Generator().manual_seed(1))) == 0  # no room
    assert len(background_boxes(objects[:0], (100, 120), torch.Generator().manual_seed(1))) == 0


def planted_detections(rng: np.random.Generator, prototypes: torch.Tensor) -> tuple[list[Instances], list[bool]]:
    """Ten scenes of two objects in a map of 12 x 16 cells; boxes that are right, moved, and of a wrong class."""
    scenes, is_right = [], []
    for _ in range(10):
        features = torch.from_numpy(rng.normal(0, 0.3, (16, 12, 16)))
        corners = [(int(rng.integers(0, 9)), top) for top in (0, 6)]
        for left, top in corners:
            features[:4, top : top + 4, left : left + 5] += 1.5
        right = [[8.0 * left, 8.0 * top, 8.0 * left + 40, 8.0 * top + 32] for left, top in corners]
        moved = [
            [8.0 * ((left + 8) % 11), 8.0 * top, 8.0 * ((left + 8) % 11) + 40, 8.0 * top + 32] for left, top in corners
        ]
        true_ids = rng.integers(0, 3, 2)
        looks_like = np.concatenate([true_ids, [3, 3], true_ids])
        claimed = np.concatenate([true_ids, true_ids, (true_ids + 1) % 3])
        image = Instances((96, 128))
        image.pred_boxes = Boxes(torch.tensor(right + moved + right))
        image.pred_classes = torch.from_numpy(claimed)
        image.box_features = prototypes[looks_like] + torch.from_numpy(rng.normal(0, 0.5, (6, 8)))
        image.activation = activation_in_boxes(activation_energy(features), image.pred_boxes.tensor, 8)
        scenes.append(image)
        is_right += [True, True, False, False, False, False]
    return scenes, is_right


def test_planted_false_boxes_are_found() -> None:
    """Neither value finds both kinds as well: activation knows no class, and features are noisy."""
    rng = np.random.default_rng(7)
    directions = torch.eye(8, dtype=torch.float64)[:4]
    check = PseudoLabelCheck("veto", 0.2, RegionPrototypes(3, 8), seed=1)
    check.prototypes.update(directions, torch.arange(4))
    scenes, is_right = planted_detections(rng, directions)
    checked = check.judge(scenes)
    assert roc_auc_score(is_right, checked.value_R) > 0.85
    assert roc_auc_score(is_right, checked.activation_R) < 0.85


class FixedTeacher:
    """A teacher whose second detection looks like background."""

    def detect_with_regions(self, weak: list[dict[str, Any]]) -> list[tuple[Instances, None]]:
        image = Instances((64, 64))
        image.pred_boxes = Boxes(torch.tensor([[0.0, 0, 9, 9], [10, 10, 30, 30], [5, 5, 9, 9]]))
        image.scores = torch.tensor([0.9, 0.8, 0.3])
        image.pred_classes = torch.tensor([0, 1, 2])
        image.box_features = torch.eye(4)[[0, 3, 2]]
        image.activation = torch.tensor([0.8, 0.8, 0.8])
        return [(image, None) for _ in weak]


@pytest.mark.parametrize("mode", ["veto", "weight"])
def test_a_detection_below_the_threshold_is_left_out_or_counts_less(mode: str) -> None:
    check = PseudoLabelCheck(mode, 0.4, RegionPrototypes(3, 4), seed=1)
    check.prototypes.update(torch.eye(4), torch.arange(4))
    threshold = ScoreThreshold("fixed", 0.5, 3)
    found = pseudo_label(FixedTeacher(), [{}, {}], threshold, check=check)  # type: ignore[arg-type]
    # The second region has cosine 1 with background and 0 with the three classes.
    value = 0.8 / (math.exp(10) + 3)
    for target in found.targets:
        assert target.gt_boxes.tensor.tolist() == [[0, 0, 9, 9], [10, 10, 30, 30]]
        assert target.gt_classes.tolist() == ([0, IGNORE_LABEL] if mode == "veto" else [0, 1])
        assert target.gt_weight.tolist() == pytest.approx([1.0, 0.0 if mode == "veto" else value / 0.4])
    assert found.num_boxes_K.tolist() == ([2, 0, 0] if mode == "veto" else [2, 2, 0])
    assert (check.num_judged, check.num_below) == (4, 2)


def test_weights_follow_the_targets_to_their_regions_and_spare_background() -> None:
    checked, unchecked = Instances((9, 9)), Instances((9, 9))
    checked.gt_classes, unchecked.gt_classes = torch.tensor([1, 3]), torch.tensor([0, 3])
    class_ids = torch.cat([checked.gt_classes, unchecked.gt_classes])
    assert pseudo_label_weight([checked, unchecked], class_ids, 3) == 1.0
    set_weight(checked, torch.tensor([0.25, 0.5]))
    weight = pseudo_label_weight([checked, unchecked], class_ids, 3)
    assert isinstance(weight, torch.Tensor)
    assert weight.tolist() == [0.25, 1.0, 1.0, 1.0]


def test_regions_of_detections_are_those_of_their_boxes(
    detector: PerImageRCNN, example: Callable[..., dict[str, Any]]
) -> None:
    detector.eval()
    inputs = [example(1), example(2, side_px=96), example(3)]
    found = [image for image, _ in detector.detect_with_regions(inputs)]
    plain = [image for image, _ in detector(inputs)]
    apart = detector.region_features(inputs, [image.pred_boxes for image in found])
    for image, other, features in zip(found, plain, apart, strict=True):
        assert torch.equal(image.scores, other.scores)
        assert len(image) > 0
        torch.testing.assert_close(image.box_features, features)
        assert ((image.activation >= 0) & (image.activation <= 1)).all()


def checked_trainer(mode: str, threshold: float) -> TeacherStudentTrainer:
    run = new_trainer()
    run.check = new_check(mode, threshold)
    return run


@pytest.mark.parametrize("mode", ["veto", "weight"])
def test_going_on_from_a_checkpoint_repeats_the_run_with_the_check(
    batch_of: Callable[[int], StepBatch], mode: str, tmp_path: Any
) -> None:
    whole, killed, resumed = (checked_trainer(mode, 0.9) for _ in range(3))
    expected = run_steps(whole, batch_of, 6)
    run_steps(killed, batch_of, 3)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    got = run_steps(resumed, batch_of, 6)
    assert got == expected[3:]
    assert whole.check is not None
    assert resumed.check is not None
    assert resumed.check.num_judged == whole.check.num_judged > 0
    assert 0 < resumed.check.num_below == whole.check.num_below
    for one, two in zip(resumed.teacher.parameters(), whole.teacher.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_check_that_refuses_nothing_changes_no_bit(batch_of: Callable[[int], StepBatch]) -> None:
    plain, checked = new_trainer(), checked_trainer("veto", 0.0)
    assert run_steps(plain, batch_of, 4) == run_steps(checked, batch_of, 4)
    for one, two in zip(plain.student.parameters(), checked.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_weight_multiplies_the_classification_loss_of_the_regions_of_its_target(detector: PerImageRCNN) -> None:
    predictor = detector.roi_heads.box_predictor
    logits, deltas = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 3]]), torch.zeros(3, 4)
    image = Instances((64, 64), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]] * 3)))
    image.gt_classes, image.gt_boxes = torch.tensor([0, 1, NUM_CLASSES]), image.proposal_boxes

    def loss() -> float:
        return float(predictor.losses((logits, deltas), [image])["loss_cls"])

    p = torch.softmax(logits, dim=1)[range(3), image.gt_classes].double().numpy()
    terms = -((1 - p) ** 1.5) * np.log(p)
    assert loss() == pytest.approx(terms.mean(), rel=1e-4)
    set_weight(image, torch.tensor([0.25, 0.5, 0.0]))
    assert loss() == pytest.approx((0.25 * terms[0] + 0.5 * terms[1] + terms[2]) / 3, rel=1e-4)
