"""Train a detector's backbone on images without labels, before the detector is trained (docs/method.md#pretraining).

Shape shorthand: N images of a step in this process; R regions over these images; C channels of the pyramid; D
dimensions of an embedding.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from detectron_ext.distributed import all_reduce_mean, average_gradients, rank, world_size
from detectron_ext.meta_arch import PerImageRCNN, autocast
from detectron_ext.pretraining_views import PretrainingBatch
from detectron_ext.trainer import (
    TrainingDiverged,
    check_gradient,
    micro_batches,
    new_scaler,
    parameter_groups,
    warmup_cosine,
)
from detectron_ext.vicreg import embedding_spread, vicreg

EMBEDDING_DIM = 256
MIN_SPREAD = 0.05
"""Of ``embedding_spread``: below it, all regions look alike to the network."""
_SPREAD_MOMENTUM = 0.9
_WARMUP_FRAC = 0.1


@dataclass(frozen=True)
class PretrainingSchedule:
    """As in ``tasks.params``; the learning rate rises over the first tenth, then falls to 0 along half a cosine."""

    iterations: int
    learning_rate: float
    backbone_lr_factor: float
    weight_decay: float
    grad_clip_norm: float

    def learning_rate_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration."""
        return warmup_cosine(iteration, self.iterations, int(_WARMUP_FRAC * self.iterations), self.learning_rate, 0.0)


@dataclass
class PretrainingLog:
    """Loss and other figures of one step."""

    iteration: int
    learning_rate: float
    loss: float
    invariance: float
    variance: float
    covariance: float
    embedding_spread: float


def new_expander(num_channels: int) -> nn.Sequential:
    """Build the network between a region's features (R, C) and its embedding (R, D), which only pretraining needs.

    Layer norms in place of VICReg's batch norms: a region's embedding is then the same whatever else is in the step.
    """
    layers: list[nn.Module] = []
    for width in (num_channels, EMBEDDING_DIM):
        layers += [nn.Linear(width, EMBEDDING_DIM), nn.LayerNorm(EMBEDDING_DIM), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM))


@dataclass
class BackbonePretrainer:
    """Trains the body and the pyramid of a detector in place; holds all state that changes in pretraining."""

    detector: PerImageRCNN
    schedule: PretrainingSchedule
    mixed_precision: bool
    seed: int
    num_micro_batches: int = 1
    """Parts that a step's images are split into: less memory, one more forward pass, the same gradient."""
    iteration: int = 0
    spread: float = 1.0
    """Running mean of ``embedding_spread``; from 1 on, so that the first steps of a new expander stop nothing."""
    expander: nn.Sequential = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Build the expander.

        Raises:
            ValueError: every stage of the backbone's body is frozen.
        """
        backbone, heads, device = self.detector.backbone, self.detector.roi_heads, self.detector.device
        if not any(parameter.requires_grad for parameter in backbone.bottom_up.parameters()):
            raise ValueError("all stages of the backbone are frozen, expected at least one to train")
        torch.manual_seed(self.seed)
        self.expander = new_expander(backbone.output_shape()[heads.box_in_features[0]].channels).to(device)
        self._networks = nn.ModuleDict({"backbone": backbone, "expander": self.expander}).train()
        self._parameters = [parameter for parameter in self._networks.parameters() if parameter.requires_grad]
        groups = parameter_groups(self._networks, self.schedule.weight_decay, self.schedule.backbone_lr_factor)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self._scaler = new_scaler(str(device), mixed_precision=self.mixed_precision)

    @property
    def is_finished(self) -> bool:
        """Whether no iteration is left."""
        return self.iteration >= self.schedule.iterations

    def step(self, batch: PretrainingBatch) -> PretrainingLog:
        """Run one iteration.

        Raises:
            TrainingDiverged: the loss or a gradient is not finite, or all regions came to look alike. The backbone is
                as before the step.
        """
        torch.manual_seed((self.seed * 1_000_003 + self.iteration) * world_size() + rank())
        learning_rate = self.schedule.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        measured = self._backward(batch)
        average_gradients(self._parameters)
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        means = all_reduce_mean(torch.cat([measured, norm.double().reshape(1)]))
        loss, invariance, variance, covariance, spread, gradient_norm = means.tolist()
        self._check(loss, spread)
        check_gradient(gradient_norm, self._networks, self._scaler, self._when)
        nn.utils.clip_grads_with_norm_(self._parameters, self.schedule.grad_clip_norm, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.iteration += 1
        return PretrainingLog(self.iteration, learning_rate, loss, invariance, variance, covariance, spread)

    def _backward(self, batch: PretrainingBatch) -> Tensor:
        """Add the gradients of one step; return loss, invariance, variance, covariance and spread, (5,) double."""
        slices = micro_batches(len(batch.first), self.num_micro_batches)
        parts = [PretrainingBatch(batch.first[part], batch.second[part]) for part in slices]
        with torch.set_grad_enabled(len(parts) == 1):  # of several, all are embedded before the first keeps its graph
            embedded = [torch.stack(self.embed(part)) for part in parts]
        embeddings_2RD = torch.cat(embedded, dim=1)
        if len(parts) > 1:
            embeddings_2RD.requires_grad_()
        terms = vicreg(*embeddings_2RD)
        torch.autograd.backward(self._scaler.scale(terms.total))
        if len(parts) > 1:
            assert embeddings_2RD.grad is not None
            gradients = torch.split(embeddings_2RD.grad, [one.shape[1] for one in embedded], dim=1)
            for part, gradient_2RD in zip(parts, gradients, strict=True):
                torch.autograd.backward(torch.stack(self.embed(part)), gradient_2RD)
        spread = embedding_spread(embeddings_2RD[0])
        return torch.stack([terms.total, *terms, spread]).detach().double()

    def embed(self, batch: PretrainingBatch) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the regions of both views, (R, D) each.

        A region's features are the mean over what the detector's own pooling cuts out of its pyramid.
        """
        views, heads = [*batch.first, *batch.second], self.detector.roi_heads
        boxes = [Boxes(view["regions"].to(self.detector.device, non_blocking=True)) for view in views]
        with autocast(str(self.detector.device), self.mixed_precision):
            features = self.detector.backbone(self.detector.preprocess_image(views).tensor)
            pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
            embeddings = self.expander(pooled.mean(dim=(2, 3)))
        first_RD, second_RD = embeddings.float().chunk(2)  # every image has as many regions in both views
        return first_RD, second_RD

    @property
    def _when(self) -> str:
        return f"iteration {self.iteration} of pretraining"

    def _check(self, loss: float, spread: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDiverged(f"loss is {loss} at {self._when}, expected a finite number")
        self.spread = _SPREAD_MOMENTUM * self.spread + (1 - _SPREAD_MOMENTUM) * spread
        if self.spread < MIN_SPREAD:
            raise TrainingDiverged(
                f"spread of the normalized embeddings is {self.spread:.3g} at {self._when}, expected at least"
                f" {MIN_SPREAD:g}: all regions of all images look alike to the network"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, of a finished run the backbone; tensors and plain numbers."""
        state: dict[str, Any] = {"iteration": self.iteration, "backbone": self.detector.backbone.state_dict()}
        if self.is_finished:
            return state
        return state | {
            "spread": self.spread,
            "expander": self.expander.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.iteration = state["iteration"]
        self.detector.backbone.load_state_dict(state["backbone"])
        if self.is_finished:
            return
        self.spread = state["spread"]
        self.expander.load_state_dict(state["expander"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:  # empty where the run was not in float16
            self._scaler.load_state_dict(state["scaler"])
