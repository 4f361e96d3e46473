"""What a training step costs over the sum of its parts, and the throughput of each part.

Run: ``make bench``. The parts and the step take turns, so that a machine that slows down slows all of them;
quote the ratio, not the seconds.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from rich.console import Console
from rich.table import Table

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import build_detector
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.trainer import ImageWeighting, Schedule, TeacherStudentTrainer
from tasks.model.detector import default_device, detector_config
from tasks.params import load_params

_REPEATS, _WARMUP = 9, 2
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
    schedule = Schedule(10**6, 0, 0, 1, 1e-6, 1.0, 0.0, 5.0, 0.5, 0.98, 1e9)
    threshold = ScoreThreshold("fixed", 0.3, len(params.classes))
    return TeacherStudentTrainer(
        student, teacher, schedule, ImageWeighting({}, "uniform"), threshold, False, True, seed=1
    )


def wall_time_s(function: Callable[[], object]) -> float:
    """Wall time of one call, with the accelerator's queue emptied before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started_s = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


def time_parts(trainer: TeacherStudentTrainer, batch: StepBatch) -> dict[str, list[float]]:
    """Seconds of each part and of the whole step, round by round."""
    targets = pseudo_label(trainer.teacher, batch.unlabeled_weak, trainer.threshold).targets
    inputs = [{**image, "instances": own} for image, own in zip(batch.unlabeled_strong, targets, strict=True)]

    def supervised() -> None:
        with EventStorage():
            trainer.student(batch.labeled).total().mean().backward()

    def unsupervised() -> None:
        with EventStorage():
            trainer.student(inputs).classification().mean().backward()

    parts: dict[str, Callable[[], object]] = {
        "supervised forward and backward": supervised,
        "teacher forward": lambda: pseudo_label(trainer.teacher, batch.unlabeled_weak, trainer.threshold),
        "unsupervised forward and backward": unsupervised,
        "whole step": lambda: trainer.step(batch),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(_WARMUP + _REPEATS):
        for name, function in parts.items():
            trainer.student.zero_grad(set_to_none=True)
            elapsed_s = wall_time_s(function)
            if number >= _WARMUP:
                times[name].append(elapsed_s)
    return times


def main() -> None:
    """Print the table."""
    params = load_params(_REPOSITORY / "params.yaml")
    sizes = (params.train.labeled_batch_size, params.train.unlabeled_batch_size)
    times = time_parts(build_trainer(), random_batch(*sizes, params.model.short_side_px, seed=0))
    images = dict(zip(times, (sizes[0], sizes[1], sizes[1], sum(sizes)), strict=True))
    table = Table("part", "median s", "images/s", title=f"Training step on {default_device()}, {torch.__version__}")
    for name, values in times.items():
        median_s = statistics.median(values)
        table.add_row(name, f"{median_s:.3f}", f"{images[name] / median_s:.1f}")
    parts = [values for name, values in times.items() if name != "whole step"]
    ratios = [whole / sum(own) for whole, *own in zip(times["whole step"], *parts, strict=True)]
    console = Console()
    console.print(table)
    console.print(
        f"whole step / sum of its parts: median {statistics.median(ratios):.2f} "
        f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {len(ratios)} rounds), bar 1.10"
    )


if __name__ == "__main__":
    main()
