"""Measure a training step against the sum of its parts, and the supervised step against Detectron2's SimpleTrainer.

Run: ``make bench``. All of them take turns, so that a machine that slows down slows all of them; quote the ratios,
not the seconds. ``SimpleTrainer`` trains the same network with the same initial weights on the same labeled images,
with Detectron2's own architecture, RPN and ROI heads instead of this package's. It does not clip gradients, check for
divergence or average a teacher; the supervised step does, and is measured with them.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from rich.console import Console
from rich.table import Table

from detectron_ext.config import build_cfg
from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import build_detector
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.trainer import ImageWeighting, Schedule, TeacherStudentTrainer, parameter_groups
from tasks.model.detector import default_device, detector_config
from tasks.params import load_params

_REPEATS, _WARMUP = 9, 2
_MIXED_PRECISION = False  # SimpleTrainer has full precision only
_WHOLE, _SUPERVISED, _STOCK = "whole step", "supervised step", "SimpleTrainer step"
_PARTS = ("supervised forward and backward", "teacher forward", "unsupervised forward and backward")
_REPOSITORY = Path(__file__).parents[2]


def random_batch(num_labeled: int, num_unlabeled: int, side_px: int, seed: int) -> StepBatch:
    """Noise of one size; labeled images with four boxes each."""
    rng = np.random.default_rng(seed)

    def pixels() -> dict[str, Any]:
        return {"image": torch.from_numpy(rng.integers(0, 256, (3, side_px, side_px)).astype(np.float32))}

    def labeled() -> dict[str, Any]:
        corner = rng.uniform(0, side_px / 2, (4, 2)).astype(np.float32)
        instances = Instances((side_px, side_px))
        instances.gt_boxes = Boxes(torch.from_numpy(np.concatenate([corner, corner + side_px / 4], axis=1)))
        instances.gt_classes = torch.zeros(4, dtype=torch.int64)
        return {**pixels(), "instances": instances}

    weak = [pixels() for _ in range(num_unlabeled)]
    ids = [str(index) for index in range(num_unlabeled)]
    return StepBatch([labeled() for _ in range(num_labeled)], ids, weak, [dict(image) for image in weak])


def build_trainer() -> TeacherStudentTrainer:
    """Teacher and student of the repository's parameters, past burn-in."""
    params = load_params(_REPOSITORY / "params.yaml")
    torch.manual_seed(0)
    spec = detector_config(params.model, len(params.classes), params.ssl.focal_gamma)
    student, teacher = build_detector(spec, default_device()), build_detector(spec, default_device())
    teacher.load_state_dict(student.state_dict())
    schedule = Schedule(
        iterations=10**6,
        burn_in=0,
        warmup=0,
        rampup=1,
        learning_rate=1e-6,
        min_lr_ratio=1.0,
        weight_decay=0.0,
        grad_clip_norm=5.0,
        lambda_unsup=0.5,
        ema_decay=0.98,
        divergence_loss_ratio=1e9,
    )
    return TeacherStudentTrainer(
        student,
        teacher,
        schedule,
        ImageWeighting({}, "uniform"),
        ScoreThreshold("fixed", 0.3, len(params.classes)),
        pseudo_label_box_loss=False,
        mixed_precision=_MIXED_PRECISION,
        seed=1,
    )


def build_simple_trainer(trainer: TeacherStudentTrainer, labeled: list[dict[str, Any]]) -> SimpleTrainer:
    """Build Detectron2's trainer and stock detector with the student's weights and the same optimizer.

    Raises:
        RuntimeError: the stock detector has other tensors than the student.
    """
    params = load_params(_REPOSITORY / "params.yaml")
    cfg = build_cfg(detector_config(params.model, len(params.classes), params.ssl.focal_gamma), default_device())
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    model = build_model(cfg)
    model.load_state_dict(trainer.student.state_dict())
    optimizer = torch.optim.AdamW(
        parameter_groups(model, trainer.schedule.weight_decay), lr=trainer.schedule.learning_rate, fused=True
    )
    return SimpleTrainer(model, itertools.repeat(labeled), optimizer)


def wall_time_s(function: Callable[[], object]) -> float:
    """Wall time of one call, with the accelerator's queue emptied before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started_s = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


def time_steps(trainer: TeacherStudentTrainer, batch: StepBatch) -> dict[str, list[float]]:
    """Seconds of each part, of the whole step, and of a supervised step by both trainers, repeat by repeat."""
    targets = pseudo_label(trainer.teacher, batch.unlabeled_weak, trainer.threshold).targets
    inputs = [{**image, "instances": own} for image, own in zip(batch.unlabeled_strong, targets, strict=True)]
    labeled_only = StepBatch(batch.labeled, [], [], [])
    simple_trainer = build_simple_trainer(trainer, batch.labeled)

    def supervised() -> None:
        with EventStorage():
            trainer.student(batch.labeled).total().mean().backward()

    def unsupervised() -> None:
        with EventStorage():
            trainer.student(inputs).classification().mean().backward()

    def stock_step() -> None:
        with EventStorage():
            simple_trainer.run_step()

    measured: dict[str, Callable[[], object]] = {
        _PARTS[0]: supervised,
        _PARTS[1]: lambda: pseudo_label(trainer.teacher, batch.unlabeled_weak, trainer.threshold),
        _PARTS[2]: unsupervised,
        _WHOLE: lambda: trainer.step(batch),
        _SUPERVISED: lambda: trainer.step(labeled_only),
        _STOCK: stock_step,
    }
    times: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(_WARMUP + _REPEATS):
        for name, function in measured.items():
            trainer.student.zero_grad(set_to_none=True)
            elapsed_s = wall_time_s(function)
            if number >= _WARMUP:
                times[name].append(elapsed_s)
    return times


def format_ratio(name: str, ratios: list[float]) -> str:
    """Format the median and range of ``ratios``."""
    low, high = min(ratios), max(ratios)
    return f"{name}: median {statistics.median(ratios):.2f} (min {low:.2f}, max {high:.2f}, {len(ratios)} repeats)"


def main() -> None:
    """Print the table and the two ratios."""
    params = load_params(_REPOSITORY / "params.yaml")
    num_labeled, num_unlabeled = params.train.labeled_batch_size, params.train.unlabeled_batch_size
    batch = random_batch(num_labeled, num_unlabeled, params.model.short_side_px, seed=0)
    times = time_steps(build_trainer(), batch)
    both = num_labeled + num_unlabeled
    images = (num_labeled, num_unlabeled, num_unlabeled, both, num_labeled, num_labeled)
    table = Table("part", "median s", "images/s", title=f"Training step on {default_device()}, {torch.__version__}")
    for (name, values), num_images in zip(times.items(), images, strict=True):
        median_s = statistics.median(values)
        table.add_row(name, f"{median_s:.3f}", f"{num_images / median_s:.1f}")
    of_parts = [
        whole / sum(parts) for whole, *parts in zip(times[_WHOLE], *(times[name] for name in _PARTS), strict=True)
    ]
    of_stock = [own / stock for own, stock in zip(times[_SUPERVISED], times[_STOCK], strict=True)]
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(format_ratio("whole step / sum of its parts", of_parts) + ", bar 1.10")
    console.print(format_ratio("supervised step / SimpleTrainer step", of_stock) + ", bar 1.00")


if __name__ == "__main__":
    main()
