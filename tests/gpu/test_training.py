"""Training steps on a GPU: resumption, mixed precision, peak memory, two processes.

CUDA kernels add in any order, so that repetitions differ by rounding errors, which later steps amplify.
"""

import functools
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import cpu_state_dict, mixed_precision_dtype
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext import ddp_launch
from tests.detectron_ext.test_mixed_precision import record_dtypes
from tests.detectron_ext.tiny import NUM_CLASSES
from tests.detectron_ext.tiny_run import new_trainer, run_steps

pytestmark = pytest.mark.gpu
_LARGE_SIDE_PX = 256


def test_a_resumed_training_continues_with_the_state_of_the_checkpoint(
    device: str, no_tf32: None, batch_of: Callable[[int], StepBatch], tmp_path: Path
) -> None:
    def trainer() -> TeacherStudentTrainer:
        run = new_trainer(device=device, mixed_precision=False)
        run.threshold = ScoreThreshold("adaptive", 0.1, NUM_CLASSES)
        return run

    killed = trainer()
    run_steps(killed, batch_of, 3)
    torch.save(killed.state_dict(), tmp_path / "state.pth")
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", map_location="cpu", weights_only=True))
    assert resumed.iteration == 3
    for own, saved in ((resumed.student, killed.student), (resumed.teacher, killed.teacher)):
        state, expected = own.state_dict(), saved.state_dict()
        assert {tensor.device.type for tensor in state.values()} == {device}
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(resumed.threshold.class_thresholds(), killed.threshold.class_thresholds())
    moments = [value for entry in resumed.optimizer.state.values() for value in entry.values() if value.ndim]
    assert moments
    assert {moment.device.type for moment in moments} == {device}
    expected_logs = run_steps(killed, batch_of, 5)
    logs = run_steps(resumed, batch_of, 5)
    assert logs[0].loss_sup == pytest.approx(expected_logs[0].loss_sup, rel=1e-3)
    assert logs[0].loss_unsup == pytest.approx(expected_logs[0].loss_unsup, rel=1e-2)
    assert logs[1].loss_sup == pytest.approx(expected_logs[1].loss_sup, rel=0.05)
    assert [entry.iteration for entry in logs] == [4, 5]


def test_mixed_precision_computes_in_half_and_keeps_weights_in_float32(
    device: str, batch_of: Callable[[int], StepBatch]
) -> None:
    full = run_steps(new_trainer(device=device, mixed_precision=False), batch_of, 3)
    run = new_trainer(device=device)
    seen = record_dtypes(run)
    half = run_steps(run, batch_of, 3)
    assert seen == {mixed_precision_dtype(device) or torch.float32}
    for one, two in zip(half, full, strict=True):
        assert one.loss_sup == pytest.approx(two.loss_sup, rel=0.05)
        assert one.loss_unsup == pytest.approx(two.loss_unsup, rel=0.1)
    assert half[2].loss_unsup > 0
    kept = [*run.student.parameters(), *run.teacher.parameters()]
    kept += [moment for state in run.optimizer.state.values() for moment in state.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in kept)


def large_batch(example: Callable[..., dict[str, Any]], iteration: int) -> StepBatch:
    """Four labeled and four unlabeled images, large enough for activations to outweigh the weights."""
    images = [
        example(10 * iteration + number, [[20, 20, 120, 160]], [number % NUM_CLASSES], side_px=_LARGE_SIDE_PX)
        for number in range(8)
    ]
    return StepBatch(images[:4], ["a", "b", "c", "d"], images[4:], deepcopy(images[4:]))


def allocated_bytes(device: str) -> int:
    """Memory of live tensors. Fails without CUDA: there is no such figure for a CPU."""
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


def test_micro_batches_lower_the_peak_memory(
    device: str, example: Callable[..., dict[str, Any]], record_property: Callable[[str, object], None]
) -> None:
    peak_bytes = {}
    for parts in (1, 4):
        run = new_trainer(device=device, threshold=0.3)
        run.num_micro_batches = parts
        run.step(large_batch(example, 0))  # allocates the optimizer's state
        torch.cuda.reset_peak_memory_stats(device)
        run.step(large_batch(example, 1))
        peak_bytes[parts] = torch.cuda.max_memory_allocated(device)
        record_property(f"peak_bytes_{parts}_micro_batches", peak_bytes[parts])
        del run
    assert 0 < peak_bytes[4] < peak_bytes[1]


def test_memory_does_not_grow_from_step_to_step(device: str, example: Callable[..., dict[str, Any]]) -> None:
    run = new_trainer(device=device, threshold=0.3)
    batch = large_batch(example, 0)
    for _ in range(3):
        run.step(batch)
    before_bytes = allocated_bytes(device)
    for _ in range(5):
        run.step(batch)
    assert allocated_bytes(device) - before_bytes < 1 << 20


def test_two_processes_train_as_one(device: str, no_tf32: None, tmp_path: Path) -> None:
    """With NCCL on two GPUs; on one GPU both processes share it, and gloo connects them, as NCCL cannot."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    alone, start = ddp_launch.new_trainer(device), ddp_launch.new_trainer(device)
    logs = [alone.step(ddp_launch.make_batch(iteration)) for iteration in range(ddp_launch.SCHEDULE.iterations)]
    train_rank = functools.partial(ddp_launch.train_rank, device=device)
    first, second = ddp_launch.launch_two_processes(train_rank, tmp_path, backend)
    for name, network in (("student", alone.student), ("teacher", alone.teacher)):
        state, before = cpu_state_dict(network), cpu_state_dict(start.student)
        assert all(torch.equal(first[name][key], second[name][key]) for key in state)
        distance = torch.cat([(first[name][key] - state[key]).flatten() for key in state]).norm()
        moved = torch.cat([(state[key] - before[key]).flatten() for key in state]).norm()
        assert distance < 0.1 * moved
    losses = torch.tensor([[entry.loss_sup, entry.loss_unsup, entry.mean_image_weight] for entry in logs])
    assert (losses[1:, 1] > 0).all()
    torch.testing.assert_close(first["losses"], losses, rtol=1e-2, atol=1e-4)
    assert torch.equal(first["losses"], second["losses"])
    assert torch.equal(first["scores"], second["scores"])
