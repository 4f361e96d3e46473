"""What the tests of several devices run in processes of their own, on CPUs and gloo instead of GPUs and NCCL."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances

from detectron_ext.batches import StepBatch
from detectron_ext.distributed import any_process, mean_over_processes
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import TeacherStudent
from tests.detectron_ext import tiny_run
from tests.detectron_ext.tiny import NUM_CLASSES

SCHEDULE = replace(
    tiny_run.SCHEDULE, iterations=4, burn_in=1, warmup=1, ramp=1, final_learning_rate_frac=1.0, max_loss_ratio=1e6
)


def new_run() -> TeacherStudent:
    """No sampling of anchors and ROIs: it would draw other ones in every process."""
    run = tiny_run.new_run(SCHEDULE, z={"b": 2.0})
    run.threshold = ScoreThreshold("adaptive", 0.0, NUM_CLASSES)
    for network in (run.student, run.teacher):
        network.proposal_generator.batch_size_per_image = 10**6
        network.roi_heads.batch_size_per_image = 10**6
    return run


def batch_of(iteration: int, rank: int = 0, world_size: int = 1) -> StepBatch:
    labeled = [_example(10 * iteration, 1), _example(10 * iteration + 1, 0)]
    unlabeled = [_example(10 * iteration + 2), _example(10 * iteration + 3)] if iteration else []
    ids = ["a", "b"][: len(unlabeled)]
    own = slice(rank, None, world_size)
    return StepBatch(labeled[own], ids[own], unlabeled[own], unlabeled[own])


def _example(seed: int, label: int | None = None) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    inputs = {"image": pixels, "height": 64, "width": 64}
    if label is not None:
        boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]]))
        inputs["instances"] = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([label]))
    return inputs


def in_two_processes(function: Callable[..., None], folder: Path) -> list[Any]:
    """``function(rank, folder)`` in both, joined by gloo; returns what each wrote to ``<rank>.pth``."""
    mp.spawn(_join, nprocs=2, args=(function, folder))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def _join(rank: int, function: Callable[..., None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    function(rank, folder)
    dist.destroy_process_group()


def train_a_share(rank: int, folder: Path) -> None:
    run = new_run()
    logs = [run.step(batch_of(iteration, rank, 2)) for iteration in range(SCHEDULE.iterations)]
    losses = [[entry.loss_sup, entry.loss_unsup, entry.mean_image_weight] for entry in logs]
    state = {"student": run.student.state_dict(), "teacher": run.teacher.state_dict()}
    torch.save({**state, "losses": torch.tensor(losses), "scores": run.threshold.mean_score_K}, folder / f"{rank}.pth")


def talk(rank: int, folder: Path) -> None:
    mean = mean_over_processes(torch.tensor([1.0, 2.0]) * (rank + 1))
    flags = torch.tensor([any_process(rank == 1), any_process(False)])
    torch.save({"mean": mean, "flags": flags}, folder / f"{rank}.pth")
