"""Mixed precision without a GPU: the casts of CUDA, made on the CPU, where the product itself makes none."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from detectron_ext import inference, trainer
from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.data import StepBatch
from detectron_ext.inference import detect, prepare_image
from detectron_ext.meta_arch import PerImageRCNN, autocast, mixed_precision_dtype
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


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert mixed_precision_dtype("cuda") is dtype
    assert mixed_precision_dtype("cpu") is None
    assert not autocast("cpu", enabled=True)._enabled


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU trains as a GPU before Ampere: float16, and a scaler."""
    monkeypatch.setattr(trainer, "mixed_precision_dtype", lambda _device: torch.float16)
    monkeypatch.setattr(
        trainer, "autocast", lambda _device, enabled: torch.autocast("cpu", dtype=torch.float16, enabled=enabled)
    )


@pytest.mark.usefixtures("float16")
def test_float16_leaves_out_steps_that_overflow_and_goes_on(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    run._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=2000)
    before = [p.clone() for p in run.student.parameters()]
    run.step(batch_of(0))
    for old, now in zip(before, run.student.parameters(), strict=True):
        assert torch.equal(old, now)
    assert run._scaler.get_scale() == 2.0**59
    run._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    run_steps(run, batch_of, 3)
    assert any(not torch.equal(old, now) for old, now in zip(before, run.student.parameters(), strict=True))
    assert all(p.isfinite().all() for p in (*run.student.parameters(), *run.teacher.parameters()))


@pytest.mark.usefixtures("float16")
def test_float16_stops_when_no_scale_helps(batch_of: Callable[[int], StepBatch]) -> None:
    run = new_trainer()
    run._scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    bias = run.student.roi_heads.box_predictor.cls_score.bias
    bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(trainer.TrainingDiverged, match="gradient of"):
        run.step(batch_of(0))


@pytest.mark.usefixtures("float16")
def test_the_scale_is_part_of_a_checkpoint(batch_of: Callable[[int], StepBatch]) -> None:
    killed, resumed = new_trainer(), new_trainer()
    killed._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    killed.step(batch_of(0))
    resumed.load_state_dict(killed.state_dict())
    assert resumed._scaler.get_scale() == killed._scaler.get_scale() == 2.0**59


def test_detections_are_nearly_those_of_full_precision(detector: PerImageRCNN, request: pytest.FixtureRequest) -> None:
    sizes = AugmentationConfig(short_side_px=64, long_side_px=64)
    pixels = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in (1, 2)]
    images = [prepare_image(one, sizes) for one in pixels]
    full = detect(detector.eval(), images, mixed_precision=True)
    request.getfixturevalue("mixed_precision")
    half = detect(detector, images, mixed_precision=True)
    for one, two in zip(half, full, strict=True):
        assert one.boxes_xyxy.dtype == one.scores.dtype == one.class_probs.dtype == np.float32
        assert len(one.scores) > 0
        assert one.scores.max() == pytest.approx(two.scores.max(), abs=0.02)
        np.testing.assert_allclose(one.class_probs.sum(axis=1), 1, atol=0.02)
        np.testing.assert_allclose(one.embedding, two.embedding, rtol=0.1, atol=0.05)
