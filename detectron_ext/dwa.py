"""Dynamic Weight Adjustment (docs/method.md#dwa): a small network that weights the metrics of each image.

Shape shorthand: B images, F features, K foreground classes; the three metrics are always in
the order confidence, entropy, overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from detectron_ext.uncertainty_metrics import Floats, grouped_spearman

_RANK_TEMPERATURE = 0.1
_BIAS_LEARNING_RATE = 0.05


class DwaNetwork(nn.Module):
    """MLP from image features to metric weights and class weights (docs/method.md#eq-12).

    Both heads start at zero, so training starts at equal weights.
    """

    def __init__(self, num_features: int, num_classes: int, hidden_units: int) -> None:
        """Build the network for F features and K classes; ``hidden_units`` is the width of its one hidden layer."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_features, hidden_units), nn.Tanh())
        self.metric_head = nn.Linear(hidden_units, 3)
        self.class_head = nn.Linear(hidden_units, num_classes)
        for head in (self.metric_head, self.class_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Compute metric weights (B, 3), positive with sum 1, and class weights (B, K), positive with mean 1."""
        hidden = self.body(features_BF)
        class_logits_BK = self.class_head(hidden)
        num_classes = class_logits_BK.shape[1]
        return self.metric_head(hidden).softmax(dim=1), num_classes * class_logits_BK.softmax(dim=1)


@dataclass(frozen=True)
class DwaSamples:
    """Labeled images that were not in their teacher's training set, with features and realized losses."""

    image_ids: list[str]
    group: NDArray[np.int64]  # (B,) index of the teacher; images of one teacher share a group
    features: Floats  # (B, F)
    metrics: Floats  # (B, 3) normalized
    loss: Floats  # (B,) realized loss l (docs/method.md#eq-11)

    def __len__(self) -> int:
        return len(self.image_ids)

    def subset(self, index: NDArray[np.int64]) -> "DwaSamples":
        """Return the samples at ``index``."""
        ids = [self.image_ids[i] for i in index]
        return DwaSamples(ids, self.group[index], self.features[index], self.metrics[index], self.loss[index])


@dataclass(frozen=True)
class DwaConfig:
    """Size and training of the network; see ``tasks.params.DwaParams``."""

    hidden_units: int
    epochs: int
    learning_rate: float
    weight_decay: float
    weight_variance_penalty: float
    uniform_prior_penalty: float
    cv_folds: int
    seed: int


@dataclass(frozen=True)
class DwaEnsemble:
    """The networks of all cross-validation folds; their outputs are averaged."""

    networks: tuple[DwaNetwork, ...]
    mean: Floats  # (F,) feature statistics of the pool
    std: Floats  # (F,)

    def weights(self, features_BF: Floats) -> tuple[Floats, Floats]:
        """Compute metric weights (B, 3) and class weights (B, K) as the mean over the folds' networks."""
        with torch.no_grad():
            outputs = [network(self.standardize(features_BF)) for network in self.networks]
        metric = torch.stack([weights for weights, _ in outputs]).mean(dim=0)
        classes = torch.stack([weights for _, weights in outputs]).mean(dim=0)
        return metric.double().numpy(), classes.double().numpy()

    def standardize(self, features_BF: Floats) -> Tensor:
        """Standardize features by the pool's mean and standard deviation and clip them to [-4, 4], (B, F)."""
        return torch.from_numpy(((features_BF - self.mean) / self.std).clip(-4, 4)).float()


def ranking_loss(uncertainty_B: Tensor, loss_B: Tensor, group_B: Tensor) -> Tensor:
    """Compute the pairwise logistic ranking loss of U against realized losses (docs/method.md#eq-13).

    Mean over pairs a, b of one group with l_a > l_b of ``softplus(-(U_a - U_b) / T)``, T = 0.1. 0 without pairs.
    """
    harder_BB = (loss_B[:, None] > loss_B[None, :]) & (group_B[:, None] == group_B[None, :])
    if not harder_BB.any():
        return uncertainty_B.sum() * 0
    margin_BB = uncertainty_B[:, None] - uncertainty_B[None, :]
    return F.softplus(-margin_BB[harder_BB] / _RANK_TEMPERATURE).mean()


def fit_network(
    samples: DwaSamples, features_BF: Tensor, class_prior_K: Floats, config: DwaConfig, seed: int
) -> DwaNetwork:
    """Train one network on the objective of docs/method.md#eq-14 (full batch, AdamW).

    The heads' biases are shared by all images: they get a higher learning rate and no weight decay. The variance
    of the weights over images is penalized, because a round adds few samples.

    Args:
        samples: at least 2.
        features_BF: (B, F) standardized features of the samples.
        class_prior_K: q, the class target; sums to 1.
        config: sizes and schedule.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    network = DwaNetwork(features_BF.shape[1], len(class_prior_K), config.hidden_units)
    shared_parameters = [network.metric_head.bias, network.class_head.bias]
    image_parameters = [*network.body.parameters(), network.metric_head.weight, network.class_head.weight]
    optimizer = torch.optim.AdamW(
        [
            {"params": shared_parameters, "lr": _BIAS_LEARNING_RATE, "weight_decay": 0.0},
            {"params": image_parameters, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        ]
    )
    metrics, loss = torch.from_numpy(samples.metrics).float(), torch.from_numpy(samples.loss).float()
    group, target = (
        torch.from_numpy(samples.group),
        torch.from_numpy(class_prior_K * len(class_prior_K)).float(),
    )
    for _ in range(config.epochs):
        optimizer.zero_grad()
        weights_B3, classes_BK = network(features_BF)
        ranking = ranking_loss((weights_B3 * metrics).sum(dim=1), loss, group)
        mean_3 = weights_B3.mean(dim=0)
        weight_variance = (weights_B3 - mean_3).square().sum(dim=1).mean()
        uniform_distance = (mean_3 - 1 / 3).square().sum()
        class_error = (classes_BK - target).square().mean()
        total = (
            ranking
            + config.weight_variance_penalty * weight_variance
            + config.uniform_prior_penalty * uniform_distance
            + class_error
        )
        total.backward()
        optimizer.step()
    return network.eval()


@dataclass(frozen=True)
class DwaResult:
    """A trained ensemble and the rank correlations that decide whether it is used."""

    ensemble: DwaEnsemble
    spearman_dwa: float | None
    spearman_equal: float | None
    held_out_weights: Floats  # (B, 3) of every sample, from the network trained without it


def fit_dwa(samples: DwaSamples, pool_features: Floats, class_prior_K: Floats, config: DwaConfig) -> DwaResult:
    """Train one network per fold; every sample gets weights from the network trained without it.

    Args:
        samples: at least ``config.cv_folds``.
        pool_features: (P, F), for standardization: the pool has more images than ``samples``.
        class_prior_K: q, the class target; sums to 1.
        config: sizes and schedule.
    """
    std = pool_features.std(axis=0)
    ensemble = DwaEnsemble((), pool_features.mean(axis=0), np.where(std > 1e-6, std, 1.0))
    features = ensemble.standardize(samples.features)
    fold_B = assign_folds(samples, config.cv_folds, config.seed)
    held_out, networks = np.full((len(samples), 3), 1 / 3), []
    for fold in range(config.cv_folds):
        train_index, held_out_index = np.flatnonzero(fold_B != fold), np.flatnonzero(fold_B == fold)
        network = fit_network(
            samples.subset(train_index), features[train_index], class_prior_K, config, config.seed + fold
        )
        with torch.no_grad():
            held_out[held_out_index] = network(features[held_out_index])[0].double().numpy()
        networks.append(network)
    return DwaResult(
        DwaEnsemble(tuple(networks), ensemble.mean, ensemble.std),
        rank_correlation(samples, held_out),
        rank_correlation(samples, np.full((len(samples), 3), 1 / 3)),
        held_out,
    )


def assign_folds(samples: DwaSamples, cv_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign samples to balanced folds by image id, (B,); all samples of one image share a fold."""
    unique = sorted(set(samples.image_ids))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_by_id = {image_id: int(position) % cv_folds for image_id, position in zip(unique, order, strict=True)}
    return np.array([fold_by_id[image_id] for image_id in samples.image_ids], dtype=np.int64)


def rank_correlation(samples: DwaSamples, weights_B3: Floats) -> float | None:
    """Compute the Spearman correlation of U with the realized loss within groups, weighted by group size."""
    score = (weights_B3 * samples.metrics).sum(axis=1)
    groups: Sequence[int] = np.unique(samples.group).tolist()
    return grouped_spearman([(score[samples.group == g], samples.loss[samples.group == g]) for g in groups])
