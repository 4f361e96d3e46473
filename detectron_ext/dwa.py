"""Dynamic Weight Adjustment (docs/method.md#dwa): small networks that weight the metrics of each image.

Shape shorthand: B samples, F features, M metrics, T terms of the mixture, S networks that are trained side by side,
P pairs of samples. A term is a metric or, in a signed mixture, 1 minus a metric.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from detectron_ext.ranking import RankingPairs
from detectron_ext.uncertainty_metrics import Floats

_RANK_TEMPERATURE = 0.1
_SHARED_LEARNING_RATE = 0.05
_BLOCK_IMAGES = 4096
"""Of a pool, computed at once."""
_COMPLEMENT_LOGIT = -3.0
"""At the start a metric's complement has exp(-3), 5 %, of the metric's own weight."""


class FeatureRows(Protocol):
    """Features of many images, (B, F): an array, or what gives one for a slice of the images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, rows: slice, /) -> Floats:
        """Return the features of a slice of the images."""


def mean_and_std(features_BF: FeatureRows) -> tuple[Floats, Floats]:
    """Compute mean and standard deviation of each feature, (F,) each, block by block (Chan's update)."""
    mean_F, squares_F = features_BF[:0].sum(axis=0), features_BF[:0].sum(axis=0)
    for start in range(0, len(features_BF), _BLOCK_IMAGES):
        block_BF = features_BF[start : start + _BLOCK_IMAGES]
        count = start + len(block_BF)
        shift_F = block_BF.mean(axis=0) - mean_F
        squares_F += block_BF.var(axis=0) * len(block_BF) + shift_F**2 * start * len(block_BF) / count
        mean_F += shift_F * len(block_BF) / count
    return mean_F, np.sqrt(squares_F / max(len(features_BF), 1))


@dataclass(frozen=True)
class DwaSamples:
    """Labeled images that were not in their teacher's training set, with features and realized losses."""

    image_ids: list[str]
    group: NDArray[np.int64]  # (B,) index of the teacher; images of one teacher share a group
    features: Floats  # (B, F)
    metrics: Floats  # (B, M) normalized
    loss: Floats  # (B,) realized loss l (docs/method.md#eq-11)
    is_random: NDArray[np.bool_]  # (B,) drawn uniformly, not chosen for a score (docs/method.md#choice)

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class DwaConfig:
    """Size and training of the networks, and the choice among rules; see ``tasks.params.DwaParams``."""

    hidden_units: int
    epochs: int
    learning_rate: float
    weight_decay: float
    weight_variance_penalties: tuple[float, ...]
    prior_penalty: float
    allow_negative_weights: bool
    cv_folds: int
    min_gain_se: float
    prior_rule: str
    min_random_samples: int
    seed: int


def mixture_terms(metrics_BM: Floats, *, signed: bool) -> Floats:
    """Return what the mixture adds up, (B, T): the metrics, and in a signed mixture their complements 1 - m too."""
    return np.concatenate([metrics_BM, 1 - metrics_BM], axis=1) if signed else metrics_BM


def equal_weights(num_metrics: int, *, signed: bool) -> Floats:
    """Return the weights (T,) that give every metric 1 / M and a complement nothing."""
    equal_M = np.full(num_metrics, 1 / num_metrics)
    return np.concatenate([equal_M, np.zeros(num_metrics)]) if signed else equal_M


def metric_weights(weights_BT: Floats, num_metrics: int) -> Floats:
    """Return the weight of each metric, (B, M): that of a complement counts as negative (docs/method.md#eq-12)."""
    positive_BM, negative_BM = weights_BT[:, :num_metrics], weights_BT[:, num_metrics:]
    return np.asarray(positive_BM - negative_BM) if negative_BM.shape[1] else positive_BM


class DwaNetworks(nn.Module):
    """S networks of one size, from image features to weights of the terms (docs/method.md#eq-12).

    Each is an MLP with one hidden layer of tanh units. The output layers start at zero weights, so training starts
    at the prior rule. A network that is not ``per_image`` reads no feature: it gives all images its bias.
    """

    def __init__(
        self, num_features: int, initial_weight_T: Floats, hidden_units: int, per_image: Sequence[bool], seed: int
    ) -> None:
        """Build the networks.

        Args:
            num_features: F.
            initial_weight_T: weights at the start; those that are 0 start at 5 % of the largest.
            hidden_units: width of the hidden layer.
            per_image: one entry for each of the S networks: whether its weights depend on the image.
            seed: of the hidden layers; every network gets its own.
        """
        super().__init__()
        num_networks, num_terms = len(per_image), len(initial_weight_T)
        bound = num_features**-0.5
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(num_networks, hidden_units, num_features + 1, generator=generator) * 2 * bound - bound
        self.hidden_weight = nn.Parameter(drawn[:, :, :-1].clone())
        self.hidden_bias = nn.Parameter(drawn[:, :, -1:].clone())
        self.output_weight = nn.Parameter(torch.zeros(num_networks, num_terms, hidden_units))
        logit_T1 = torch.where(torch.from_numpy(initial_weight_T) > 0, 0.0, _COMPLEMENT_LOGIT)[:, None]
        self.output_bias = nn.Parameter(logit_T1.float().repeat(num_networks, 1, 1))
        self.per_image: Tensor
        self.register_buffer("per_image", torch.tensor(per_image, dtype=torch.float32)[:, None, None])

    def forward(self, features_BF: Tensor) -> Tensor:
        """Compute the weights (S, T, B), positive with sum 1 over T."""
        hidden_SHB = torch.tanh(torch.matmul(self.hidden_weight, features_BF.T) + self.hidden_bias)
        logits_STB = torch.bmm(self.output_weight * self.per_image, hidden_SHB) + self.output_bias
        return logits_STB.softmax(dim=1)

    def subset(self, index: Sequence[int]) -> "DwaNetworks":
        """Return a copy of the networks at ``index``."""
        chosen = copy.deepcopy(self)
        with torch.no_grad():
            for name in ("hidden_weight", "hidden_bias", "output_weight", "output_bias"):
                setattr(chosen, name, nn.Parameter(getattr(self, name)[list(index)].clone()))
            chosen.per_image = self.per_image[list(index)].clone()
        return chosen


@dataclass(frozen=True)
class DwaEnsemble:
    """The networks of all cross-validation folds; their outputs are averaged."""

    networks: DwaNetworks  # one for each fold
    mean: Floats  # (F,) feature statistics of the pool
    std: Floats  # (F,)

    def weights(self, features_BF: FeatureRows) -> Floats:
        """Compute the weights of the terms, (B, T), as the mean over the folds' networks, in blocks of images."""
        blocks = []
        with torch.no_grad():
            for start in range(0, len(features_BF), _BLOCK_IMAGES):
                block = self.networks(self.standardize(features_BF[start : start + _BLOCK_IMAGES]))
                blocks.append(block.double().mean(dim=0).T.numpy())
        return np.concatenate(blocks) if blocks else np.zeros((0, self.networks.output_bias.shape[1]))

    def standardize(self, features_BF: Floats) -> Tensor:
        """Standardize features by the pool's mean and standard deviation and clip them to [-4, 4], (B, F)."""
        return torch.from_numpy(((features_BF - self.mean) / self.std).clip(-4, 4)).float()


def ranking_loss(uncertainty_SB: Tensor, pairs: RankingPairs) -> Tensor:
    """Compute the pairwise ranking loss of U against realized losses, (S,) (docs/method.md#eq-13).

    Weighted mean over pairs with l_a > l_b of ``softplus(-(U_a - U_b) / T)``, T = 0.1; 0 without pairs.
    """
    margin_SP = uncertainty_SB.gather(1, pairs.harder_SP) - uncertainty_SB.gather(1, pairs.easier_SP)
    return (pairs.weight_SP * F.softplus(-margin_SP / _RANK_TEMPERATURE)).sum(dim=1)


def fit_networks(
    features_BF: Tensor,
    terms_BT: Floats,
    is_training_SB: NDArray[np.bool_],
    pairs: RankingPairs,
    penalty_S: Sequence[float],
    prior_T: Floats,
    config: DwaConfig,
) -> DwaNetworks:
    """Train S networks side by side on the objective of docs/method.md#eq-14 (full batch, AdamW).

    The output biases are shared by all images: they get a higher learning rate and no weight decay.

    Args:
        features_BF: standardized features of all samples.
        terms_BT: terms of all samples.
        is_training_SB: the samples that each network is trained on.
        pairs: those that each network has to order; of its training samples only.
        penalty_S: c of the penalty c / n on the variance of the weights between images; infinite: the network reads
            no feature.
        prior_T: weights of the prior rule, where training starts and to which the mean weights are drawn.
        config: sizes and schedule.
    """
    per_image = np.isfinite(penalty_S)
    networks = DwaNetworks(features_BF.shape[1], prior_T, config.hidden_units, per_image.tolist(), config.seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [networks.output_bias], "lr": _SHARED_LEARNING_RATE, "weight_decay": 0.0},
            {
                "params": [networks.hidden_weight, networks.hidden_bias, networks.output_weight],
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
            },
        ]
    )
    terms_TB, prior = torch.from_numpy(terms_BT.T.copy()).float(), torch.from_numpy(prior_T).float()
    share_SB1 = torch.from_numpy(is_training_SB / is_training_SB.sum(axis=1, keepdims=True)).float()[:, :, None]
    count_S = torch.from_numpy(is_training_SB.sum(axis=1)).float()
    constant_S = torch.from_numpy(np.where(per_image, penalty_S, 0.0)).float()
    for _ in range(config.epochs):
        optimizer.zero_grad()
        weights_STB = networks(features_BF)
        mean_ST1 = torch.bmm(weights_STB, share_SB1)
        variance_S = torch.bmm((weights_STB - mean_ST1).square(), share_SB1).sum(dim=(1, 2))
        distance_S = (mean_ST1[:, :, 0] - prior).square().sum(dim=1)
        ranking_S = ranking_loss((weights_STB * terms_TB).sum(dim=1), pairs)
        penalties_S = (constant_S * variance_S + config.prior_penalty * distance_S) / count_S
        torch.autograd.backward((ranking_S + penalties_S).sum())
        optimizer.step()
    return networks.eval()
