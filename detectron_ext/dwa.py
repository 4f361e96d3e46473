"""Dynamic Weight Adjustment: a small network that decides per image how much each metric counts.

METHOD section 3. Shape shorthand: B images, F features, K foreground classes; the three metrics are always in
the order confidence, entropy, overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from detectron_ext.metrics import Floats, spearman_within

_RANK_TEMPERATURE = 0.1
_COMMON_LEARNING_RATE = 0.05


class DWANetwork(nn.Module):
    """MLP from image features to metric weights and class weights.

    Starts at equal weights: both heads are zero, so that it departs from them only where the pairs say so.
    """

    def __init__(self, num_features: int, num_classes: int, hidden_units: int) -> None:
        """Sizes F, K and the width of the one hidden layer."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_features, hidden_units), nn.Tanh())
        self.metric_head = nn.Linear(hidden_units, 3)
        self.class_head = nn.Linear(hidden_units, num_classes)
        for head in (self.metric_head, self.class_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Metric weights (B, 3), each > 0, sum 1; class weights (B, K), positive, mean 1."""
        hidden = self.body(features_BF)
        class_logits_BK = self.class_head(hidden)
        num_classes = class_logits_BK.shape[1]
        return self.metric_head(hidden).softmax(dim=1), num_classes * class_logits_BK.softmax(dim=1)


@dataclass(frozen=True)
class Pairs:
    """Images a teacher had not been trained on, and what people then found on them."""

    image_ids: list[str]
    group: NDArray[np.int64]  # (B,) images of one teacher share a group
    features: Floats  # (B, F)
    metrics: Floats  # (B, 3) normalised
    loss: Floats  # (B,) realised loss l

    def __len__(self) -> int:
        return len(self.image_ids)

    def subset(self, index: NDArray[np.int64]) -> "Pairs":
        """The pairs at ``index``."""
        ids = [self.image_ids[i] for i in index]
        return Pairs(ids, self.group[index], self.features[index], self.metrics[index], self.loss[index])


@dataclass(frozen=True)
class DwaSpec:
    """Size and training of the network; see ``tasks.params.DwaParams``."""

    hidden_units: int
    epochs: int
    learning_rate: float
    weight_decay: float
    spread_penalty: float
    uniform_penalty: float
    folds: int
    seed: int


@dataclass(frozen=True)
class DwaEnsemble:
    """The networks of all folds; together they are what the held-out pairs judged."""

    networks: tuple[DWANetwork, ...]
    mean: Floats  # (F,) feature statistics of the pool
    deviation: Floats  # (F,)

    def weights(self, features_BF: Floats) -> tuple[Floats, Floats]:
        """Metric weights (B, 3) and class weights (B, K): the mean over the folds' networks."""
        with torch.no_grad():
            outputs = [network(self.standardised(features_BF)) for network in self.networks]
        metric = torch.stack([weights for weights, _ in outputs]).mean(dim=0)
        classes = torch.stack([weights for _, weights in outputs]).mean(dim=0)
        return metric.double().numpy(), classes.double().numpy()

    def standardised(self, features_BF: Floats) -> Tensor:
        """Features as the networks read them, (B, F): 0 is the pool's mean, 1 one standard deviation."""
        return torch.from_numpy(((features_BF - self.mean) / self.deviation).clip(-4, 4)).float()


def ranking_loss(uncertainty_B: Tensor, loss_B: Tensor, group_B: Tensor) -> Tensor:
    """Pairwise logistic loss between the order of U and the order of the realised losses, within groups.

    Mean over pairs a, b of one group with l_a > l_b of ``softplus(-(U_a - U_b) / T)``, T = 0.1. 0 without pairs.
    """
    harder_BB = (loss_B[:, None] > loss_B[None, :]) & (group_B[:, None] == group_B[None, :])
    if not harder_BB.any():
        return uncertainty_B.sum() * 0
    margin_BB = uncertainty_B[:, None] - uncertainty_B[None, :]
    return F.softplus(-margin_BB[harder_BB] / _RANK_TEMPERATURE).mean()


def fit_network(pairs: Pairs, features_BF: Tensor, class_share_K: Floats, spec: DwaSpec, seed: int) -> DWANetwork:
    """Train one network on standardised features (full batch, AdamW).

    The weights that all images share (the heads' biases) are learned fast and freely; what sets one image
    apart is penalised by its spread around the mean weights, since a night brings few pairs.

    Args:
        pairs: at least 2.
        features_BF: standardised features of the pairs.
        class_share_K: q, the class target; sums to 1.
        spec: sizes and schedule.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    network = DWANetwork(features_BF.shape[1], len(class_share_K), spec.hidden_units)
    common = [network.metric_head.bias, network.class_head.bias]
    own = [*network.body.parameters(), network.metric_head.weight, network.class_head.weight]
    optimizer = torch.optim.AdamW(
        [
            {"params": common, "lr": _COMMON_LEARNING_RATE, "weight_decay": 0.0},
            {"params": own, "lr": spec.learning_rate, "weight_decay": spec.weight_decay},
        ]
    )
    metrics, loss = torch.from_numpy(pairs.metrics).float(), torch.from_numpy(pairs.loss).float()
    group, target = (
        torch.from_numpy(pairs.group),
        torch.from_numpy(class_share_K * len(class_share_K)).float(),
    )
    for _ in range(spec.epochs):
        optimizer.zero_grad()
        weights_B3, classes_BK = network(features_BF)
        ranking = ranking_loss((weights_B3 * metrics).sum(dim=1), loss, group)
        mean_3 = weights_B3.mean(dim=0)
        spread = (weights_B3 - mean_3).square().sum(dim=1).mean()
        distance = (mean_3 - 1 / 3).square().sum()
        class_error = (classes_BK - target).square().mean()
        total = ranking + spec.spread_penalty * spread + spec.uniform_penalty * distance + class_error
        total.backward()
        optimizer.step()
    return network.eval()


@dataclass(frozen=True)
class DwaFit:
    """A trained ensemble and the figures that decide whether it is used."""

    ensemble: DwaEnsemble
    spearman_dwa: float | None
    spearman_equal: float | None
    held_out_weights: Floats  # (B, 3) of every pair by the network that had not seen it


def fit_dwa(pairs: Pairs, pool_features: Floats, class_share_K: Floats, spec: DwaSpec) -> DwaFit:
    """Cross-fitted training: every pair is judged by a network trained without it.

    Args:
        pairs: at least ``spec.folds``.
        pool_features: (P, F), for standardisation; the pool is larger than the pairs.
        class_share_K: q, the class target; sums to 1.
        spec: sizes and schedule.
    """
    deviation = pool_features.std(axis=0)
    ensemble = DwaEnsemble((), pool_features.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0))
    features = ensemble.standardised(pairs.features)
    fold_of = folds_of(pairs, spec.folds, spec.seed)
    held_out, networks = np.full((len(pairs), 3), 1 / 3), []
    for fold in range(spec.folds):
        inside, outside = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        network = fit_network(pairs.subset(inside), features[inside], class_share_K, spec, spec.seed + fold)
        with torch.no_grad():
            held_out[outside] = network(features[outside])[0].double().numpy()
        networks.append(network)
    return DwaFit(
        DwaEnsemble(tuple(networks), ensemble.mean, ensemble.deviation),
        rank_correlation(pairs, held_out),
        rank_correlation(pairs, np.full((len(pairs), 3), 1 / 3)),
        held_out,
    )


def folds_of(pairs: Pairs, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of every pair, (B,), balanced; the same image stays in one fold whichever teacher saw it."""
    unique = sorted(set(pairs.image_ids))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_by_id = {image_id: int(position) % folds for image_id, position in zip(unique, order, strict=True)}
    return np.array([fold_by_id[image_id] for image_id in pairs.image_ids], dtype=np.int64)


def rank_correlation(pairs: Pairs, weights_B3: Floats) -> float | None:
    """Spearman correlation of U with the realised loss within groups, weighted by size."""
    score = (weights_B3 * pairs.metrics).sum(axis=1)
    groups: Sequence[int] = np.unique(pairs.group).tolist()
    return spearman_within([(score[pairs.group == g], pairs.loss[pairs.group == g]) for g in groups])
