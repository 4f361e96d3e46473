"""One real training step at a time: who learns, who follows, and that a kill changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from detectron_ext.data import StepBatch
from detectron_ext.losses import IGNORE_LABEL
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.trainer import TrainingDiverged
from tests.detectron_ext.tiny import NUM_CLASSES
from tests.detectron_ext.tiny_run import SCHEDULE, new_trainer, run_steps


def test_the_teacher_follows_the_student_by_the_moving_average(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    run_steps(run, batch_of, 2)
    for own, followed in zip(run.teacher.parameters(), run.student.parameters(), strict=True):
        torch.testing.assert_close(own, followed)  # a copy, up to the end of burn-in
    for stop, decay in ((3, 1 / 10), (4, 2 / 11)):
        before = [p.clone() for p in run.teacher.parameters()]
        run_steps(run, batch_of, stop)
        for own, old, followed in zip(run.teacher.parameters(), before, run.student.parameters(), strict=True):
            torch.testing.assert_close(own, decay * old + (1 - decay) * followed)
        assert any(not torch.equal(own, old) for own, old in zip(run.teacher.parameters(), before, strict=True))


def test_the_average_warms_up_to_its_decay() -> None:
    """(1 + t) / (10 + t) is 0.9 at t = 80."""
    decays = [SCHEDULE.teacher_decay_at(SCHEDULE.burn_in + t) for t in (-1, 0, 1, 5, 79, 80, 10_000)]
    assert decays == [0.0, 1 / 10, 2 / 11, 6 / 15, 80 / 89, 0.9, 0.9]


def test_training_lowers_the_loss(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SCHEDULE, burn_in=100, iterations=100))
    same = StepBatch(batch_of(0).labeled, [], [], [])
    losses = [run.step(same).loss_sup for _ in range(12)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_backbone_learns_at_its_own_rate(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SCHEDULE, backbone_lr_factor=0.25))
    names = {id(parameter): name for name, parameter in run.student.named_parameters()}
    run.step(batch_of(0))
    full = SCHEDULE.learning_rate_at(0)
    seen = set()
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            is_body = name.startswith("backbone.bottom_up.")
            assert group["lr"] == pytest.approx(0.25 * full if is_body else full), name
            assert group["weight_decay"] == (SCHEDULE.weight_decay if parameter.ndim > 1 else 0.0), name
    assert seen == {name for name, parameter in run.student.named_parameters() if parameter.requires_grad}
    assert {name.startswith("backbone.bottom_up.") for name in seen} == {True, False}


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_going_on_from_a_checkpoint_repeats_the_uninterrupted_run(
    batch_of: Callable[[int], StepBatch], killed_after: int, tmp_path: Any
) -> None:
    whole = new_trainer()
    expected = run_steps(whole, batch_of, 6)
    killed = new_trainer()
    run_steps(killed, batch_of, killed_after)
    killed.burn_in_uncertainty = {"a": 0.25}
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    torch.manual_seed(999)  # whatever the new process has drawn before
    resumed = new_trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert resumed.burn_in_uncertainty == {"a": 0.25}
    got = run_steps(resumed, batch_of, 6)
    assert [entry.iteration for entry in got] == [entry.iteration for entry in expected[killed_after:]]
    for one, two in zip(got, expected[killed_after:], strict=True):
        assert one.loss_sup == pytest.approx(two.loss_sup, abs=1e-6)
        assert one.loss_unsup == pytest.approx(two.loss_unsup, abs=1e-6)
        assert one.learning_rate == two.learning_rate
    for one, two in zip(resumed.teacher.parameters(), whole.teacher.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_half_a_batch_at_a_time_gives_the_same_losses_and_gradients(
    batch_of: Callable[[int], StepBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which proposals are sampled depends on the order of the draws; without chance there is no difference."""
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))
    schedule = replace(SCHEDULE, burn_in=0, rampup=0)
    z = {"a": 2.0, "b": -1.0}
    whole, halves = new_trainer(schedule, z), new_trainer(schedule, z)
    halves.num_micro_batches = 2
    expected, got = whole.step(batch_of(2)), halves.step(batch_of(2))
    assert got.loss_sup == pytest.approx(expected.loss_sup, rel=1e-5)
    assert got.loss_unsup == pytest.approx(expected.loss_unsup, rel=1e-5)
    for one, two in zip(halves.student.parameters(), whole.student.parameters(), strict=True):
        if two.grad is not None:  # sums in another order, on other processors another one again
            scale = two.grad.abs().max().item()
            torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=max(1e-2 * scale, 1e-6))


def test_an_image_of_weight_zero_changes_nothing(
    batch_of: Callable[[int], StepBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W_j = sigmoid(-large) is 0 in float32: the update equals one on labels alone.

    Without chance: the labeled images' ROIs are drawn after the anchors of all images.
    """
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))
    schedule = replace(SCHEDULE, burn_in=0, rampup=0)
    weightless = new_trainer(schedule, z={"a": -1e4, "b": -1e4})
    log = weightless.step(batch_of(2))
    labels_only = new_trainer(schedule)
    assert labels_only.step(StepBatch(batch_of(2).labeled, [], [], [])).lambda_unsup == 0
    assert log.mean_image_weight == 0
    for one, two in zip(weightless.student.parameters(), labels_only.student.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_pseudo_boxes_do_not_train_box_regression(batch_of: Callable[[int], StepBatch]) -> None:
    """Only the unlabeled images have boxes here."""
    for pseudo_label_box_loss in (False, True):
        run = new_trainer(replace(SCHEDULE, burn_in=0, rampup=0))
        run.pseudo_label_box_loss = pseudo_label_box_loss
        log = run.step(replace(batch_of(2), labeled=batch_of(2).labeled[1:]))
        assert log.pseudo_boxes_per_image > 0
        assert run.student.roi_heads.box_predictor.cls_score.weight.grad.any()
        assert run.student.proposal_generator.rpn_head.objectness_logits.weight.grad.any()
        for layer in (
            run.student.roi_heads.box_predictor.bbox_pred,
            run.student.proposal_generator.rpn_head.anchor_deltas,
        ):
            assert bool(layer.weight.grad.any()) == pseudo_label_box_loss


def test_one_pass_gives_the_losses_and_gradient_of_separate_passes(
    batch_of: Callable[[int], StepBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 18 written out: labeled and unlabeled images forward and backward apart."""
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))
    schedule = replace(SCHEDULE, burn_in=0, rampup=0, lambda_unsup=0.5, grad_clip_norm=1e9)
    z = {"a": 2.0, "b": -1.0}
    run, apart = new_trainer(schedule, z), new_trainer(schedule, z)
    batch = batch_of(2)
    log = run.step(batch)
    weight_N = torch.sigmoid(torch.tensor([2.0, -1.0]))
    targets = pseudo_label(apart.teacher, batch.unlabeled_weak, apart.threshold).targets
    unlabeled = [{**strong, "instances": own} for strong, own in zip(batch.unlabeled_strong, targets, strict=True)]
    with EventStorage():
        loss_sup = apart.student(batch.labeled).total().mean()
        loss_unsup = (weight_N * apart.student(unlabeled).classification()).mean()
    (loss_sup + 0.5 * loss_unsup).backward()
    assert log.loss_sup == pytest.approx(loss_sup.item(), rel=1e-5)
    assert log.loss_unsup == pytest.approx(loss_unsup.item(), rel=1e-5)
    assert log.mean_image_weight == pytest.approx(weight_N.mean().item())
    for one, two in zip(run.student.parameters(), apart.student.parameters(), strict=True):
        if two.grad is not None:
            scale = two.grad.abs().max().item()
            torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=max(1e-2 * scale, 1e-6))


def test_images_without_pseudo_labels_stay_finite(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SCHEDULE, burn_in=0), threshold=1.0)
    log = run.step(batch_of(2))
    assert log.pseudo_boxes_per_image == 0
    assert log.pseudo_boxes_K == [0.0] * NUM_CLASSES
    assert 0 < log.loss_unsup < 100


def test_pseudo_boxes_are_counted_by_class_without_unsure_ones(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SCHEDULE, burn_in=0, rampup=0))
    batch = batch_of(2)
    scores_R = torch.cat([detections.scores for detections, _ in run.teacher(batch.unlabeled_weak)])
    classes_R = torch.cat([detections.pred_classes for detections, _ in run.teacher(batch.unlabeled_weak)])
    middle = float(scores_R.median())
    run.threshold = ScoreThreshold("fixed", middle, NUM_CLASSES, ignore_score_threshold=0.0)
    accepted_R = scores_R >= middle
    log = run.step(batch)
    assert 0 < accepted_R.sum() < len(accepted_R)
    assert log.pseudo_boxes_K == [(accepted_R & (classes_R == k)).sum() / 2 for k in range(NUM_CLASSES)]
    assert log.pseudo_boxes_per_image == accepted_R.sum() / 2


def test_nan_stops_before_the_update(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    run.step(batch_of(0))
    before = [p.clone() for p in run.student.parameters()]
    broken = batch_of(1)
    broken.labeled[0]["image"][:] = float("nan")
    with pytest.raises(TrainingDiverged, match="proposals are not finite at iteration 1"):
        run.step(broken)
    for old, now in zip(before, run.student.parameters(), strict=True):
        torch.testing.assert_close(old, now)


def test_a_gradient_that_is_not_finite_stops_before_the_update(batch_of: Callable[[int], StepBatch]) -> None:
    """A finite loss can have one: seen last, it would leave NaN in student and teacher."""
    run = new_trainer()
    run.step(batch_of(0))
    before = [p.clone() for p in (*run.student.parameters(), *run.teacher.parameters())]
    bias = run.student.roi_heads.box_predictor.cls_score.bias
    bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TrainingDiverged, match=r"gradient of roi_heads\.box_predictor\.cls_score\.bias is .* iteration 1"
    ):
        run.step(batch_of(1))
    for old, now in zip(before, (*run.student.parameters(), *run.teacher.parameters()), strict=True):
        assert torch.equal(old, now)


def test_a_runaway_loss_ratio_stops_the_run(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer(replace(SCHEDULE, burn_in=0, divergence_loss_ratio=1e-6))
    with pytest.raises(TrainingDiverged, match="unsupervised over supervised"):
        run.step(batch_of(2))


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [SCHEDULE.learning_rate_at(i) for i in range(10)]
    assert rates[0] == pytest.approx(0.5e-3)
    assert rates[1] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert SCHEDULE.learning_rate_at(10) == pytest.approx(1e-4)


def test_lambda_is_zero_in_burn_in_and_ramps_up() -> None:
    assert [SCHEDULE.lambda_at(i) for i in range(5)] == [0.0, 0.0, 0.5, 1.0, 1.0]


class FixedTeacher:
    """A teacher that always says the same."""

    def __call__(self, weak: list[dict[str, Any]]) -> list[tuple[Instances, None]]:
        instances = Instances((64, 64))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 9, 9], [10, 10, 30, 30], [5, 5, 9, 9]]))
        instances.scores = torch.tensor([0.9, 0.71, 0.3])
        instances.pred_classes = torch.tensor([0, 1, 2])
        return [(instances, None) for _ in weak]


def test_pseudo_labels_are_the_boxes_above_the_threshold() -> None:
    targets = pseudo_label(FixedTeacher(), [{}], ScoreThreshold("fixed", 0.7, 3)).targets  # type: ignore[arg-type]
    assert targets[0].gt_classes.tolist() == [0, 1]
    assert targets[0].gt_boxes.tensor.tolist() == [[0, 0, 9, 9], [10, 10, 30, 30]]


def test_detections_the_teacher_is_unsure_of_are_marked() -> None:
    threshold = ScoreThreshold("fixed", 0.75, 3, ignore_score_threshold=0.3)
    targets = pseudo_label(FixedTeacher(), [{}], threshold).targets  # type: ignore[arg-type]
    assert targets[0].gt_classes.tolist() == [0, IGNORE_LABEL, IGNORE_LABEL]
    threshold = ScoreThreshold("fixed", 0.75, 3, ignore_score_threshold=0.31)
    targets = pseudo_label(FixedTeacher(), [{}], threshold).targets  # type: ignore[arg-type]
    assert targets[0].gt_classes.tolist() == [0, IGNORE_LABEL]
    assert targets[0].gt_boxes.tensor.tolist() == [[0, 0, 9, 9], [10, 10, 30, 30]]


def test_a_class_that_takes_no_part_is_ignored_and_not_background() -> None:
    """Class 1 scores 0.71: at the threshold of 0.7 no pseudo-label, and from 0.35 on a region that is ignored."""
    for threshold, expected in ((0.7, [0, IGNORE_LABEL]), (1.42, [IGNORE_LABEL]), (1.44, [])):
        rule = ScoreThreshold("fixed", threshold, 3, excluded_classes=[1])
        targets = pseudo_label(FixedTeacher(), [{}], rule).targets  # type: ignore[arg-type]
        assert targets[0].gt_classes.tolist() == expected
    rule = ScoreThreshold("fixed", 0.7, 3, excluded_classes=[1])
    assert pseudo_label(FixedTeacher(), [{}], rule).num_boxes_K.tolist() == [1, 0, 0]  # type: ignore[arg-type]


def test_measured_thresholds_hold_for_their_classes_only() -> None:
    rule = ScoreThreshold("precision", 0.95, 3, measured_thresholds={2: 0.25, 1: 0.72})
    assert rule.class_thresholds().tolist() == pytest.approx([0.95, 0.72, 0.25])
    targets = pseudo_label(FixedTeacher(), [{}], rule).targets  # type: ignore[arg-type]
    assert targets[0].gt_classes.tolist() == [2]


def test_a_rare_unsure_class_never_has_the_highest_adaptive_threshold() -> None:
    threshold = ScoreThreshold("adaptive", 0.6, 3)
    rng = np.random.default_rng(5)
    for image in range(400):
        scores, classes = [0.8, 0.7], [0, 1]
        if rng.random() < 0.03:
            scores, classes = [*scores, 0.35], [*classes, 2]
        threshold.update(torch.tensor(scores), torch.tensor(classes))
        if threshold.state_dict()["count_K"][2] > 0:
            assert threshold.class_thresholds()[2] == threshold.class_thresholds().min(), image
    assert threshold.state_dict()["count_K"][2] > 0


def test_adaptive_threshold_gives_unsure_classes_a_chance() -> None:
    threshold = ScoreThreshold("adaptive", 0.7, 3, momentum=0.0)
    threshold.update(torch.tensor([0.9, 0.45]), torch.tensor([0, 1]))
    first, second, untouched = threshold.class_thresholds().tolist()
    assert second < first <= untouched == pytest.approx(0.7)


@pytest.mark.parametrize("images", [1, 80, 600, 2700])
def test_adaptive_threshold_has_no_bias_at_any_time(images: int) -> None:
    """Class 0 is seen often with mean 0.6, class 1 often with 0.4, class 2 in 5 % of the images with 0.3."""
    threshold = ScoreThreshold("adaptive", 0.5, 4)
    for image in range(images):
        classes = [0, 1, *([2] if image % 20 == 0 else [])]
        scores = [{0: 0.6, 1: 0.4, 2: 0.3}[k] for k in classes]
        threshold.update(torch.tensor(scores), torch.tensor(classes))
    expected = [0.5, 0.5 * 0.4 / 0.6, 0.25, 0.5]  # by the largest mean; half of it; never seen
    assert threshold.class_thresholds().tolist() == pytest.approx(expected)


def test_adaptive_threshold_has_a_floor_where_detections_begin_to_count() -> None:
    threshold = ScoreThreshold("adaptive", 0.5, 2)
    threshold.update(torch.tensor([1.0, 0.26]), torch.tensor([0, 1]))
    assert threshold.class_thresholds().tolist() == pytest.approx([0.5, 0.25])


def test_adaptive_threshold_survives_a_step_without_detections() -> None:
    threshold = ScoreThreshold("adaptive", 0.5, 2)
    threshold.update(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert threshold.class_thresholds().tolist() == [0.5, 0.5]


def test_adaptive_threshold_is_the_same_after_a_checkpoint() -> None:
    threshold, resumed = ScoreThreshold("adaptive", 0.5, 2), ScoreThreshold("adaptive", 0.5, 2)
    threshold.update(torch.tensor([0.9, 0.6]), torch.tensor([0, 1]))
    resumed.load_state_dict(threshold.state_dict())
    for one in (threshold, resumed):
        one.update(torch.tensor([0.8, 0.7]), torch.tensor([1, 0]))
    assert torch.equal(threshold.class_thresholds(), resumed.class_thresholds())
