"""A training of the tiny detector, a few steps long."""

from collections.abc import Callable

import torch

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import build_detector
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import ImageWeighting, Schedule, StepLog, TeacherStudentTrainer
from tests.detectron_ext.tiny import NUM_CLASSES, TINY

SCHEDULE = Schedule(
    iterations=10,
    burn_in=2,
    warmup=2,
    rampup=2,
    learning_rate=1e-3,
    min_lr_ratio=0.1,
    backbone_lr_factor=1.0,
    weight_decay=1e-4,
    grad_clip_norm=5.0,
    lambda_unsup=1.0,
    ema_decay=0.9,
    divergence_loss_ratio=50.0,
)


def new_trainer(
    schedule: Schedule = SCHEDULE,
    z: dict[str, float] | None = None,
    threshold: float = 0.0,
    device: str = "cpu",
    mixed_precision: bool = True,
) -> TeacherStudentTrainer:
    torch.manual_seed(0)
    student, teacher = build_detector(TINY, device), build_detector(TINY, device)
    teacher.load_state_dict(student.state_dict())
    return TeacherStudentTrainer(
        student,
        teacher,
        schedule,
        ImageWeighting(z or {}, "favor_uncertain"),
        ScoreThreshold("fixed", threshold, NUM_CLASSES),
        pseudo_label_box_loss=False,
        mixed_precision=mixed_precision,
        seed=3,
    )


def run_steps(run: TeacherStudentTrainer, batch_of: Callable[[int], StepBatch], stop: int) -> list[StepLog]:
    return [run.step(batch_of(i)) for i in range(run.iteration, stop)]
