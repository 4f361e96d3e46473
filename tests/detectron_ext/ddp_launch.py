"""Functions that the tests of several processes run in each of them: on CPUs with gloo, in tests/gpu on GPUs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances

from detectron_ext.data import StepBatch
from detectron_ext.distributed import all_reduce_mean, any_rank
from detectron_ext.meta_arch import cpu_state_dict
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import TeacherStudentTrainer
from tests.detectron_ext import tiny_run
from tests.detectron_ext.tiny import NUM_CLASSES

SCHEDULE = replace(
    tiny_run.SCHEDULE, iterations=4, burn_in=1, warmup=1, rampup=1, min_lr_ratio=1.0, divergence_loss_ratio=1e6
)


def new_trainer(device: str = "cpu") -> TeacherStudentTrainer:
    """No sampling of anchors and ROIs: it would draw other ones in every process."""
    run = tiny_run.new_trainer(SCHEDULE, z={"b": 2.0}, device=device, mixed_precision=False)
    run.threshold = ScoreThreshold("adaptive", 0.1, NUM_CLASSES)
    for network in (run.student, run.teacher):
        network.proposal_generator.batch_size_per_image = 10**6
        network.roi_heads.batch_size_per_image = 10**6
    return run


def make_batch(iteration: int, rank: int = 0, world_size: int = 1) -> StepBatch:
    labeled = [_make_input(10 * iteration, 1), _make_input(10 * iteration + 1, 0)]
    unlabeled = [_make_input(10 * iteration + 2), _make_input(10 * iteration + 3)] if iteration else []
    ids = ["a", "b"][: len(unlabeled)]
    own = slice(rank, None, world_size)
    return StepBatch(labeled[own], ids[own], unlabeled[own], unlabeled[own])


def _make_input(seed: int, label: int | None = None) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    inputs = {"image": pixels, "height": 64, "width": 64}
    if label is not None:
        boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]]))
        inputs["instances"] = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([label]))
    return inputs


def launch_two_processes(function: Callable[..., None], folder: Path, backend: str = "gloo") -> list[Any]:
    """Call ``function(rank, folder)`` in two connected processes; return what each wrote to ``<rank>.pth``."""
    mp.spawn(_init_rank, nprocs=2, args=(function, folder, backend))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def _init_rank(rank: int, function: Callable[..., None], folder: Path, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    function(rank, folder)
    dist.destroy_process_group()


def train_rank(rank: int, folder: Path, device: str = "cpu") -> None:
    torch.backends.cudnn.allow_tf32 = False  # compared with one process to less than TF32 resolves
    run = new_trainer(device)
    logs = [run.step(make_batch(iteration, rank, 2)) for iteration in range(SCHEDULE.iterations)]
    losses = [[entry.loss_sup, entry.loss_unsup, entry.mean_image_weight] for entry in logs]
    state = {"student": cpu_state_dict(run.student), "teacher": cpu_state_dict(run.teacher)}
    torch.save(
        {**state, "losses": torch.tensor(losses), "scores": run.threshold.class_thresholds()}, folder / f"{rank}.pth"
    )


def train_with_a_break_rank(rank: int, folder: Path) -> None:
    """Train to the end; and as one that is killed in the middle, whose state the first process wrote."""
    whole, killed, resumed = new_trainer(), new_trainer(), new_trainer()
    expected = [whole.step(make_batch(iteration, rank, 2)) for iteration in range(SCHEDULE.iterations)]
    logs = [killed.step(make_batch(iteration, rank, 2)) for iteration in range(2)]
    if rank == 0:
        torch.save(killed.state_dict(), folder / "checkpoint.pth")
    dist.barrier()
    resumed.load_state_dict(torch.load(folder / "checkpoint.pth", weights_only=True))
    logs += [resumed.step(make_batch(iteration, rank, 2)) for iteration in range(2, SCHEDULE.iterations)]
    losses = [torch.tensor([[one.loss_sup, one.loss_unsup] for one in run]) for run in (expected, logs)]
    states = [cpu_state_dict(run.teacher) for run in (whole, resumed)]
    torch.save({"losses": losses, "teachers": states}, folder / f"{rank}.pth")


def run_collectives(rank: int, folder: Path) -> None:
    mean = all_reduce_mean(torch.tensor([1.0, 2.0]) * (rank + 1))
    flags = torch.tensor([any_rank(rank == 1), any_rank(False)])
    torch.save({"mean": mean, "flags": flags}, folder / f"{rank}.pth")
