"""Teacher-student training (docs/method.md#training): one step, and the state that a resumed run needs."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detectron_ext.data import StepBatch
from detectron_ext.distributed import all_reduce_mean, average_gradients, rank, world_size
from detectron_ext.foreground_bank import ForegroundBank
from detectron_ext.losses import image_weight, set_box_trained
from detectron_ext.meta_arch import PerImageRCNN, autocast, mixed_precision_dtype
from detectron_ext.pseudo_label_checks import PseudoLabelCheck
from detectron_ext.pseudo_labels import ScoreThreshold, pseudo_label
from detectron_ext.source_anchor import SourceAnchor
from detectron_ext.teacher_fusion import TeacherFusion
from detectron_ext.unlabeled_views import with_pseudo_labels

_RATIO_MOMENTUM = 0.9
_BODY_PREFIX = "backbone.bottom_up."


@dataclass(frozen=True)
class Schedule:
    """Lengths in iterations; the rest as in ``tasks.params``."""

    iterations: int
    burn_in: int
    warmup: int
    rampup: int
    learning_rate: float
    min_lr_ratio: float
    backbone_lr_factor: float
    weight_decay: float
    grad_clip_norm: float
    lambda_unsup: float
    ema_decay: float
    divergence_loss_ratio: float
    further_decays: tuple[float, ...] = ()
    """Largest decays of further moving averages of the student (docs/method.md#several-teachers)."""

    def learning_rate_at(self, iteration: int) -> float:
        """Return the learning rate: linear warm-up, then half a cosine down (docs/method.md#eq-21)."""
        return warmup_cosine(iteration, self.iterations, self.warmup, self.learning_rate, self.min_lr_ratio)

    def lambda_at(self, iteration: int) -> float:
        """Return the weight of the unsupervised loss: 0 in burn-in, then a linear ramp (docs/method.md#eq-20)."""
        elapsed = iteration - self.burn_in
        if elapsed < 0:
            return 0.0
        return self.lambda_unsup * min((elapsed + 1) / max(self.rampup, 1), 1.0)

    def teacher_decay_at(self, iteration: int, largest: float | None = None) -> float:
        """Return the decay of a teacher's average: 0 in burn-in, then growing to ``largest`` (docs/method.md#eq-19).

        ``largest`` is by default that of the first teacher, ``ema_decay``.
        """
        elapsed = iteration - self.burn_in
        if elapsed < 0:
            return 0.0
        return min(self.ema_decay if largest is None else largest, (1 + elapsed) / (10 + elapsed))


def warmup_cosine(iteration: int, iterations: int, warmup: int, learning_rate: float, min_ratio: float) -> float:
    """Return the learning rate of an iteration: a linear rise, then half a cosine down (docs/method.md#eq-21).

    Args:
        iteration: from 0.
        iterations: of the whole training.
        warmup: iterations of the rise.
        learning_rate: the largest, at the end of the rise.
        min_ratio: learning rate at the end, as a fraction of the largest.
    """
    if iteration < warmup:
        return learning_rate * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(iterations - warmup, 1)
    return learning_rate * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class ImageWeighting:
    """z_j of every unlabeled image, and the rule that gives W_j; images without a value get z = 0."""

    z: dict[str, float]
    mode: str

    def weights_for(self, image_ids: list[str], device: torch.device) -> Tensor:
        """Return W_j of each image, (N,) (docs/method.md#eq-17)."""
        z_N = torch.tensor([self.z.get(image_id, 0.0) for image_id in image_ids], device=device)
        return image_weight(z_N, self.mode)


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is not finite or too large; the message names it and the iteration."""


@dataclass
class StepLog:
    """Losses and other figures of one step."""

    iteration: int
    learning_rate: float
    loss_sup: float
    loss_unsup: float
    lambda_unsup: float
    mean_image_weight: float
    pseudo_boxes_K: list[float]
    """Pseudo-boxes of each class per unlabeled image, (K,)."""

    @property
    def pseudo_boxes_per_image(self) -> float:
        """Pseudo-boxes of all classes per unlabeled image."""
        return sum(self.pseudo_boxes_K)


@dataclass
class TeacherStudentTrainer:
    """Trains a student and its moving average, the teacher; holds all state that changes in training.

    Shape shorthand: N images of a step in this process, labeled ones first, then unlabeled ones; K classes.
    """

    student: PerImageRCNN
    teacher: PerImageRCNN
    schedule: Schedule
    weighting: ImageWeighting
    threshold: ScoreThreshold
    pseudo_label_box_loss: bool
    mixed_precision: bool
    seed: int
    num_micro_batches: int = 1
    """Parts that a step's images are split into for forward and backward: less memory, the same gradient."""
    check: PseudoLabelCheck | None = None
    """Of the teacher's detections before they become pseudo-labels; None: there is none."""
    relation_weight: float = 0.0
    """Of the loss that compares relations between regions (docs/method.md#relations); 0: it is not computed."""
    spares_doubtful_background: bool = False
    """Whether background counts less where the teacher's proposal network is in doubt."""
    bank: ForegroundBank | None = None
    """Of trusted pseudo-labels, pasted in place of labeled objects; None: there is none."""
    fusion: TeacherFusion | None = None
    """Of the teacher's detections with those of other views and earlier teachers; None: they are taken as they are."""
    anchor: SourceAnchor | None = None
    """Of the student to the network that training started from, on unlabeled images; None: no anchor."""
    iteration: int = 0
    loss_ratio: float = 0.0
    burn_in_uncertainty: dict[str, float] | None = None
    """U_j of images that the teacher scored at the end of burn-in, by image id; None before, or where it does not."""
    optimizer: torch.optim.Optimizer = field(init=False)
    further_teachers: list[PerImageRCNN] = field(init=False)
    """Moving averages with the schedule's ``further_decays``; they only help to make pseudo-labels."""

    def __post_init__(self) -> None:
        # Fused: one kernel on CUDA, and on a CPU one pass over each tensor.
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.student, self.schedule.weight_decay, self.schedule.backbone_lr_factor), fused=True
        )
        self.student.train()
        self.teacher.eval().requires_grad_(False)
        self._parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.further_teachers = [copy.deepcopy(self.teacher) for _ in self.schedule.further_decays]
        self._student_tensors = _changing_tensors(self.student)
        self._teacher_tensors = [_changing_tensors(self.student, one) for one in (self.teacher, *self.further_teachers)]
        device = str(self.student.device)
        self._scaler = new_scaler(device, mixed_precision=self.mixed_precision)

    def step(self, batch: StepBatch) -> StepLog:
        """Run one iteration: pseudo-labels, forward and backward, update, moving average (docs/method.md#training).

        Raises:
            TrainingDiverged: a loss or gradient is not finite, or the unsupervised loss outgrew the supervised one.
                Student and teacher are as before the step.
        """
        # All randomness of an iteration follows from its number: a resumed run repeats it exactly.
        torch.manual_seed((self.seed * 1_000_003 + self.iteration) * world_size() + rank())
        learning_rate = self.schedule.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with EventStorage(self.iteration):
                measured = self._backward(batch)
        except FloatingPointError as error:  # from Detectron2's proposal generator
            raise TrainingDiverged(
                f"proposals are not finite at iteration {self.iteration}, expected finite boxes and scores"
            ) from error
        average_gradients(self._parameters)
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        # The step's only copy to the host, apart from Detectron2's own.
        means = all_reduce_mean(torch.cat([measured, norm.double().reshape(1)]))
        loss_sup, loss_unsup, mean_weight, *boxes_K, gradient_norm = means.tolist()
        self._check_divergence(loss_sup, loss_unsup)
        check_gradient(gradient_norm, self.student, self._scaler, f"iteration {self.iteration}")
        nn.utils.clip_grads_with_norm_(self._parameters, self.schedule.grad_clip_norm, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._update_teachers()
        lambda_unsup = self.schedule.lambda_at(self.iteration) if batch.unlabeled_ids else 0.0
        self.iteration += 1
        return StepLog(self.iteration, learning_rate, loss_sup, loss_unsup, lambda_unsup, mean_weight, boxes_K)

    def _backward(self, batch: StepBatch) -> Tensor:
        """Add the gradients of one student pass over labeled images and strong views (docs/method.md#eq-18).

        Returns:
            (3 + K,) on the device: supervised loss, unsupervised loss before lambda, mean W_j, pseudo-boxes of each
            class per unlabeled image. Zeros without unlabeled images.
        """
        num_labeled, num_unlabeled = len(batch.labeled), len(batch.unlabeled_ids)
        if self.check is not None and self.check.is_due(self.iteration, self.schedule.burn_in):
            with self._autocast():
                self.check.update(self.teacher, batch.labeled, self.iteration)
        weight_N = torch.full((num_labeled + num_unlabeled,), 1 / num_labeled, device=self.student.device)
        lambda_N = torch.ones_like(weight_N)
        inputs, boxes_K = list(batch.labeled), torch.zeros(self.threshold.num_classes)
        mean_weight = weight_N.new_zeros(1)
        if num_unlabeled:
            unlabeled, num_boxes_K = self._view_unlabeled(batch)
            inputs += unlabeled
            boxes_K = num_boxes_K / num_unlabeled
            image_weight_U = self.weighting.weights_for(batch.unlabeled_ids, self.student.device)
            mean_weight = image_weight_U.mean().reshape(1)
            weight_N[num_labeled:] = image_weight_U / num_unlabeled
            lambda_N[num_labeled:] = self.schedule.lambda_at(self.iteration)
        loss_N = torch.cat(
            [
                self._backward_part(inputs[part], weight_N[part], lambda_N[part])
                for part in micro_batches(len(inputs), self.num_micro_batches)
            ]
        )
        loss_sup, loss_unsup = loss_N[:num_labeled].sum(), loss_N[num_labeled:].sum()
        if self.anchor is not None and num_unlabeled:
            loss_unsup = loss_unsup + self._backward_anchor(
                self.anchor, batch.unlabeled_weak, weight_N[num_labeled:], lambda_N[num_labeled:]
            )
        boxes_K = boxes_K.to(self.student.device, non_blocking=True)
        return torch.cat([torch.stack([loss_sup, loss_unsup]), mean_weight, boxes_K]).double()

    def _view_unlabeled(self, batch: StepBatch) -> tuple[list[dict[str, Any]], Tensor]:
        """Return the strong views with all that the teacher says of them, and the number of pseudo-boxes (K,)."""
        if self.fusion is not None:
            self.fusion.begin_step(self.teacher, self.iteration - self.schedule.burn_in)
        with self._autocast():
            found = pseudo_label(
                self.teacher,
                batch.unlabeled_weak,
                self.threshold,
                self.further_teachers,
                self.check,
                self.fusion,
                wants_regions=self.relation_weight > 0,
            )
            doubt = self.teacher.objectness_doubt(batch.unlabeled_weak) if self.spares_doubtful_background else None
        for targets in found.targets:
            set_box_trained(targets, self.pseudo_label_box_loss)
        views = with_pseudo_labels(batch, found, self.bank, self.iteration)
        for view, own in zip(views, doubt or (), strict=doubt is not None):
            view["objectness_doubt"] = own
        if self.bank is not None:
            self.bank.add(batch.unlabeled_weak, found.targets)
        return views, found.num_boxes_K

    def _backward_part(self, inputs: list[dict[str, Any]], weight_N: Tensor, lambda_N: Tensor) -> Tensor:
        """Add the gradients of some images; return the weighted loss of each before lambda, (N,)."""
        with self._autocast():
            losses = self.student(inputs)
        loss_N = weight_N * losses.total(self.relation_weight)
        self._scaler.scale((lambda_N * loss_N).sum()).backward()
        return loss_N.detach()

    def _backward_anchor(
        self, anchor: SourceAnchor, weak: list[dict[str, Any]], weight_U: Tensor, lambda_U: Tensor
    ) -> Tensor:
        """Add the gradients of the divergence from the source; return its weighted sum before lambda, scalar."""
        total = weight_U.new_zeros(())
        for part in micro_batches(len(weak), self.num_micro_batches):
            with self._autocast():
                loss_U = anchor.weight * weight_U[part] * anchor.losses(self.student, weak[part])
            torch.autograd.backward(self._scaler.scale((lambda_U[part] * loss_U).sum()))
            total = total + loss_U.detach().sum()
        return total

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
    def _update_teachers(self) -> None:
        """Copy the student at the end of burn-in, average after it (docs/method.md#eq-19)."""
        largest_decays = (self.schedule.ema_decay, *self.schedule.further_decays)
        for largest, teacher_tensors in zip(largest_decays, self._teacher_tensors, strict=True):
            decay = self.schedule.teacher_decay_at(self.iteration, largest)
            torch._foreach_lerp_(teacher_tensors, self._student_tensors, 1 - decay)

    def _autocast(self) -> torch.autocast:
        return autocast(str(self.student.device), self.mixed_precision)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs; tensors and plain numbers only."""
        return {
            "iteration": self.iteration,
            "loss_ratio": self.loss_ratio,
            "burn_in_uncertainty": self.burn_in_uncertainty,
            "threshold": self.threshold.state_dict(),
            "check": None if self.check is None else self.check.state_dict(),
            "bank": None if self.bank is None else self.bank.state_dict(),
            "fusion": None if self.fusion is None else self.fusion.state_dict(),
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "further_teachers": [one.state_dict() for one in self.further_teachers],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.iteration = state["iteration"]
        self.loss_ratio = state["loss_ratio"]
        self.burn_in_uncertainty = state["burn_in_uncertainty"]
        self.threshold.load_state_dict(state["threshold"])
        if self.check is not None:
            self.check.load_state_dict(state["check"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        for one, stored in zip(self.further_teachers, state["further_teachers"], strict=True):
            one.load_state_dict(stored)
        if self.fusion is not None:
            self.fusion.load_state_dict(state["fusion"], self.teacher)
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:  # empty where the run was not in float16
            self._scaler.load_state_dict(state["scaler"])


def new_scaler(device: str, *, mixed_precision: bool) -> torch.amp.GradScaler:
    """Return the scaler of losses; it does nothing but where mixed precision computes in float16."""
    is_needed = mixed_precision and mixed_precision_dtype(device) is torch.float16
    return torch.amp.GradScaler(device.partition(":")[0], enabled=is_needed)


def micro_batches(num_images: int, num_parts: int) -> list[slice]:
    """Split a step's images into slices for gradient accumulation."""
    size = math.ceil(num_images / num_parts)
    return [slice(first, min(first + size, num_images)) for first in range(0, num_images, size)]


def check_gradient(norm: float, model: nn.Module, scaler: torch.amp.GradScaler, when: str) -> None:
    """Stop at a gradient that is not finite: clipping would turn it into NaN in every weight.

    Args:
        norm: of all gradients.
        model: whose gradients they are.
        scaler: of mixed precision; may be disabled.
        when: for the message.

    Raises:
        TrainingDiverged: the norm is not finite, and not because float16 overflowed.
    """
    if math.isfinite(norm):
        return
    # float16 overflows by design: the scaler skips the step and halves its scale.
    if scaler.is_enabled() and scaler.get_scale() > 1:
        return
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    where = f"gradient of {names[0]}" if names else "gradient norm"
    raise TrainingDiverged(f"{where} is {norm} at {when}, expected finite numbers")


def _changing_tensors(student: nn.Module, model: nn.Module | None = None) -> list[Tensor]:
    """Return the tensors of ``model`` (default: the student) whose counterparts in the student change in training.

    Frozen parameters are left out: teacher and student share their values from the start. Looked up once, because a
    state dict is slow to make.
    """
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    tensors = (model or student).state_dict().items()
    return [tensor for name, tensor in tensors if tensor.is_floating_point() and name not in frozen]


def parameter_groups(model: nn.Module, weight_decay: float, backbone_lr_factor: float) -> list[dict[str, Any]]:
    """Group the trainable parameters for the optimizer.

    Biases and norms get no weight decay. The pretrained body gets its own learning rate (``lr_factor``).
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for is_body, factor in ((True, backbone_lr_factor), (False, 1.0)):
        own = [parameter for name, parameter in trainable if name.startswith(_BODY_PREFIX) == is_body]
        for is_matrix, decay in ((True, weight_decay), (False, 0.0)):
            params = [parameter for parameter in own if (parameter.ndim > 1) == is_matrix]
            groups.append({"params": params, "weight_decay": decay, "lr_factor": factor})
    return [group for group in groups if group["params"]]
