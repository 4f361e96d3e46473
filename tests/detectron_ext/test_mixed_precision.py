"""Mixed precision without a GPU: the casts of CUDA, made on the CPU, where the product itself makes none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from detectron_ext import inference, trainer
from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.data import StepBatch
from detectron_ext.inference import detect
from detectron_ext.meta_arch import PerImageRCNN
from tests.detectron_ext.tiny_run import new_trainer, run_steps


def autocast_bfloat16(device: str, enabled: bool) -> torch.autocast:
    assert device == "cpu"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.fixture
def mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """``train.mixed_precision: true`` takes effect here as it does on CUDA."""
    monkeypatch.setattr(trainer, "autocast", autocast_bfloat16)
    monkeypatch.setattr(inference, "autocast", autocast_bfloat16)


def record_dtypes(run: trainer.TeacherStudentTrainer) -> set[torch.dtype]:
    """What the student's backbone computes in, from here on."""
    seen: set[torch.dtype] = set()
    layer = next(module for module in run.student.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    return seen


def test_losses_are_nearly_those_of_full_precision(
    batch_of: Callable[[int], StepBatch], request: pytest.FixtureRequest
) -> None:
    full = run_steps(new_trainer(), batch_of, 3)
    request.getfixturevalue("mixed_precision")
    run = new_trainer()
    seen = record_dtypes(run)
    half = run_steps(run, batch_of, 3)
    assert seen == {torch.bfloat16}
    for one, two in zip(half, full, strict=True):
        assert one.loss_sup == pytest.approx(two.loss_sup, rel=0.05)
        assert one.loss_unsup == pytest.approx(two.loss_unsup, rel=0.1)
    assert half != full
    assert half[2].loss_unsup > 0


@pytest.mark.usefixtures("mixed_precision")
def test_weights_gradients_and_averages_stay_in_full_precision(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    run_steps(run, batch_of, 3)
    kept = [*run.student.parameters(), *run.teacher.parameters()]
    kept += [p.grad for p in run.student.parameters() if p.grad is not None]
    kept += [moment for state in run.optimizer.state.values() for moment in state.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in kept)


@pytest.mark.usefixtures("mixed_precision")
def test_going_on_from_a_checkpoint_repeats_the_uninterrupted_run(batch_of: Callable[[int], StepBatch]) -> None:
    expected = run_steps(new_trainer(), batch_of, 5)
    killed = new_trainer()
    run_steps(killed, batch_of, 3)
    resumed = new_trainer()
    resumed.load_state_dict(killed.state_dict())
    for one, two in zip(run_steps(resumed, batch_of, 5), expected[3:], strict=True):
        assert one.loss_sup == pytest.approx(two.loss_sup, abs=1e-6)
        assert one.loss_unsup == pytest.approx(two.loss_unsup, abs=1e-6)


def test_detections_are_nearly_those_of_full_precision(detector: PerImageRCNN, request: pytest.FixtureRequest) -> None:
    images: list[Any] = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in (1, 2)]
    augmentation = AugmentationConfig(short_side_px=64, long_side_px=64)
    full = detect(detector.eval(), images, augmentation)
    request.getfixturevalue("mixed_precision")
    half = detect(detector, images, augmentation)
    for one, two in zip(half, full, strict=True):
        assert one.boxes_xyxy.dtype == one.scores.dtype == one.class_probs.dtype == np.float32
        assert len(one.scores) > 0
        assert one.scores.max() == pytest.approx(two.scores.max(), abs=0.02)
        np.testing.assert_allclose(one.class_probs.sum(axis=1), 1, atol=0.02)
        np.testing.assert_allclose(one.embedding, two.embedding, rtol=0.1, atol=0.05)
