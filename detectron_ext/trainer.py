"""Teacher-student training (METHOD section 6): one step, and the state that survives a kill."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detectron_ext.data import StepBatch
from detectron_ext.distributed import all_reduce_mean, average_gradients, rank, world_size
from detectron_ext.ignore_regions import foreground
from detectron_ext.losses import image_weight
from detectron_ext.meta_arch import PerImageRCNN, autocast
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label

_RATIO_MOMENTUM = 0.9


@dataclass(frozen=True)
class Schedule:
    """Lengths in iterations; the rest as in ``tasks.params``."""

    iterations: int
    burn_in: int
    warmup: int
    rampup: int
    learning_rate: float
    min_lr_ratio: float
    weight_decay: float
    grad_clip_norm: float
    lambda_unsup: float
    ema_decay: float
    divergence_loss_ratio: float

    def learning_rate_at(self, iteration: int) -> float:
        """Linear warm-up, then half a cosine down to the final fraction."""
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / self.warmup
        progress = (iteration - self.warmup) / max(self.iterations - self.warmup, 1)
        min_ratio = self.min_lr_ratio
        return self.learning_rate * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))

    def lambda_at(self, iteration: int) -> float:
        """Weight of the unsupervised loss: 0 in burn-in, then a linear ramp."""
        elapsed = iteration - self.burn_in
        if elapsed < 0:
            return 0.0
        return self.lambda_unsup * min((elapsed + 1) / max(self.rampup, 1), 1.0)


@dataclass(frozen=True)
class ImageWeighting:
    """z_j of every unlabeled image and how W_j follows from it; unknown images get z = 0."""

    z: dict[str, float]
    mode: str

    def weights_for(self, image_ids: list[str], device: torch.device) -> Tensor:
        """(N,) W_j."""
        z_N = torch.tensor([self.z.get(image_id, 0.0) for image_id in image_ids], device=device)
        return image_weight(z_N, self.mode)


class TrainingDiverged(RuntimeError):
    """A loss left its bounds; the message names which and where."""


@dataclass
class StepLog:
    """What one step saw."""

    iteration: int
    learning_rate: float
    loss_sup: float
    loss_unsup: float
    lambda_unsup: float
    mean_image_weight: float
    pseudo_boxes_K: list[float]
    """Of each class, per unlabeled image."""

    @property
    def pseudo_boxes_per_image(self) -> float:
        """Of all classes."""
        return sum(self.pseudo_boxes_K)


@dataclass
class TeacherStudentTrainer:
    """Student, its moving average, and everything that changes while they train."""

    student: PerImageRCNN
    teacher: PerImageRCNN
    schedule: Schedule
    weighting: ImageWeighting
    threshold: ScoreThreshold
    pseudo_label_box_loss: bool
    mixed_precision: bool
    seed: int
    num_micro_batches: int = 1
    """Parts the student takes a batch in, one after the other: less memory, the same loss and gradient."""
    iteration: int = 0
    loss_ratio: float = 0.0
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, self.schedule.weight_decay), foreach=True)
        self.student.train()
        self.teacher.eval().requires_grad_(False)

    def step(self, batch: StepBatch) -> StepLog:
        """One iteration: labels, pseudo-labels, update, moving average.

        Raises:
            TrainingDiverged: a loss is not finite, or the unsupervised loss outgrew the supervised one.
        """
        # All randomness of an iteration follows from its number: a resumed run repeats it exactly.
        torch.manual_seed((self.seed * 1_000_003 + self.iteration) * world_size() + rank())
        learning_rate = self.schedule.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        with EventStorage(self.iteration):
            loss_sup = self._backward_supervised(batch)
            means = all_reduce_mean(torch.tensor([loss_sup, *self._backward_unsupervised(batch)], dtype=torch.float64))
        loss_sup, loss_unsup, mean_weight, *boxes_K = means.tolist()
        self._check_divergence(loss_sup, loss_unsup)
        average_gradients(self.student.parameters())
        nn.utils.clip_grad_norm_(self.student.parameters(), self.schedule.grad_clip_norm)
        self.optimizer.step()
        self._update_teacher()
        lambda_unsup = self.schedule.lambda_at(self.iteration)
        self.iteration += 1
        return StepLog(self.iteration, learning_rate, loss_sup, loss_unsup, lambda_unsup, mean_weight, boxes_K)

    def _backward_supervised(self, batch: StepBatch) -> float:
        loss_sup = 0.0
        for part in self._micro_batches(len(batch.labeled)):
            with self._autocast():
                loss = self.student(batch.labeled[part]).total().mean() * _fraction(part, batch.labeled)
            loss.backward()
            loss_sup += float(loss.detach())
        return loss_sup

    def _backward_unsupervised(self, batch: StepBatch) -> list[float]:
        """Loss before lambda, mean W_j, pseudo-boxes per image of each class; zeros without unlabeled images."""
        num_classes = len(self.threshold.mean_score_K)
        if not batch.unlabeled_ids:
            return [0.0] * (2 + num_classes)
        with self._autocast():
            targets = pseudo_label(self.teacher, batch.unlabeled_weak, self.threshold)
            self.threshold.mean_score_K = all_reduce_mean(self.threshold.mean_score_K)
            inputs = [{**strong, "instances": own} for strong, own in zip(batch.unlabeled_strong, targets, strict=True)]
        weight_N = self.weighting.weights_for(batch.unlabeled_ids, self.student.device)
        loss_unsup = 0.0
        for part in self._micro_batches(len(inputs)):
            with self._autocast():
                losses = self.student(inputs[part])
            loss_N = losses.total() if self.pseudo_label_box_loss else losses.classification()
            weighted = (weight_N[part] * loss_N).mean() * _fraction(part, inputs)
            (self.schedule.lambda_at(self.iteration) * weighted).backward()
            loss_unsup += float(weighted.detach())
        class_ids_R = torch.cat([own.gt_classes for own in foreground(targets)])
        boxes_K = torch.bincount(class_ids_R, minlength=num_classes) / len(targets)
        return [loss_unsup, float(weight_N.mean()), *boxes_K.tolist()]

    def _micro_batches(self, num_images: int) -> list[slice]:
        """The slices of a batch that the student sees one after the other; gradients add up."""
        size = math.ceil(num_images / self.num_micro_batches)
        return [slice(first, min(first + size, num_images)) for first in range(0, num_images, size)]

    def _check_divergence(self, loss_sup: float, loss_unsup: float) -> None:
        for name, loss in (("supervised", loss_sup), ("unsupervised", loss_unsup)):
            if not math.isfinite(loss):
                raise TrainingDiverged(f"{name} loss is {loss} at iteration {self.iteration}, expected a finite number")
        if loss_unsup > 0:
            ratio = loss_unsup / max(loss_sup, 1e-6)
            self.loss_ratio = _RATIO_MOMENTUM * self.loss_ratio + (1 - _RATIO_MOMENTUM) * ratio
        if self.loss_ratio > self.schedule.divergence_loss_ratio:
            raise TrainingDiverged(
                f"unsupervised over supervised loss is {self.loss_ratio:.3g} at iteration {self.iteration},"
                f" expected at most {self.schedule.divergence_loss_ratio:g}"
            )

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """Copy at the end of burn-in, exponential moving average after it."""
        decay = self.schedule.ema_decay if self.iteration >= self.schedule.burn_in else 0.0
        teacher_state = list(self.teacher.state_dict().values())
        student_state = list(self.student.state_dict().values())
        float_indices = [index for index, tensor in enumerate(teacher_state) if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [teacher_state[i] for i in float_indices], [student_state[i] for i in float_indices], 1 - decay
        )

    def _autocast(self) -> torch.autocast:
        return autocast(str(self.student.device), self.mixed_precision)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly here; tensors and plain numbers only."""
        return {
            "iteration": self.iteration,
            "loss_ratio": self.loss_ratio,
            "mean_score_K": self.threshold.mean_score_K,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.iteration = state["iteration"]
        self.loss_ratio = state["loss_ratio"]
        self.threshold.mean_score_K = state["mean_score_K"]
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])


def _fraction(part: slice, whole: Sequence[object]) -> float:
    return (part.stop - part.start) / len(whole)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; biases and norms without weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
