"""Order of samples by realized loss: pairs to learn from, rank correlations, and their standard errors.

Shape shorthand: B samples, R rules that score them, S networks, P pairs, J blocks of a jackknife.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectron_ext.uncertainty_metrics import Floats, average_ranks

MAX_PAIRS = 4096
"""Pairs that one network learns from; more samples than 91 of one teacher have more, and these are drawn."""
_MAX_BLOCKS = 60
_MIN_GROUP_SIZE = 3


class RankingPairs(NamedTuple):
    """Pairs of samples of one teacher with l_a > l_b, for S networks; padded with weight 0."""

    harder_SP: Tensor  # index of a among the samples
    easier_SP: Tensor  # index of b
    weight_SP: Tensor  # g_ab of docs/method.md#eq-13, sum 1 over P


def ranking_pairs(
    loss_B: Floats, group_B: NDArray[np.int64], is_training_SB: NDArray[np.bool_], seed: int
) -> RankingPairs:
    """Form the pairs that each network has to order (docs/method.md#eq-13).

    The weight of a pair is the distance of the two losses' ranks, so that nearly equal losses hardly count; each
    teacher's pairs together weigh as its number of samples. Of more than ``MAX_PAIRS`` pairs a sample is drawn.

    Args:
        loss_B: realized losses.
        group_B: teacher of each sample; only samples of one teacher are compared.
        is_training_SB: the samples of each network.
        seed: of the drawn pairs.
    """
    rows = [_pairs_of_one(loss_B, group_B, np.flatnonzero(training_B), seed) for training_B in is_training_SB]
    longest = max((row.shape[1] for row in rows), default=0)
    padded_S3P = np.zeros((len(rows), 3, longest))
    for index, row in enumerate(rows):
        padded_S3P[index, :, : row.shape[1]] = row
    harder_SP, easier_SP, weight_SP = np.moveaxis(padded_S3P, 1, 0)
    return RankingPairs(
        torch.from_numpy(harder_SP.astype(np.int64)),
        torch.from_numpy(easier_SP.astype(np.int64)),
        torch.from_numpy(weight_SP.astype(np.float32)),
    )


def _pairs_of_one(loss_B: Floats, group_B: NDArray[np.int64], training: NDArray[np.intp], seed: int) -> Floats:
    """Return index of the harder and the easier sample, and the weight of each pair, (3, P)."""
    rng = np.random.default_rng(seed)
    members = [training[group_B[training] == group] for group in np.unique(group_B[training])]
    members = [index for index in members if len(index) > 1]
    is_drawn = sum(len(index) * (len(index) - 1) // 2 for index in members) > MAX_PAIRS
    num_samples = sum(len(index) for index in members)
    parts = []
    for index in members:
        if is_drawn:
            count = max(1, MAX_PAIRS * len(index) // num_samples)
            first = rng.integers(len(index), size=count)
            second = (first + rng.integers(1, len(index), size=count)) % len(index)
        else:
            first, second = np.triu_indices(len(index), k=1)
        rank = average_ranks(loss_B[index])
        gap = rank[first] - rank[second]
        harder, easier = np.where(gap > 0, first, second), np.where(gap > 0, second, first)
        total = np.abs(gap).sum()
        if total > 0:
            parts.append(np.stack([index[harder], index[easier], np.abs(gap) * len(index) / total]))
    if not parts:
        return np.zeros((3, 0))
    pairs_3P = np.concatenate(parts, axis=1)
    pairs_3P[2] /= pairs_3P[2].sum()
    return pairs_3P


def rank_correlations(score_RB: Floats, loss_B: Floats, group_B: NDArray[np.int64]) -> Floats | None:
    """Compute the Spearman correlation of each rule's scores with the losses within one teacher's samples, (R,).

    The mean over teachers, weighted by their numbers of samples. A teacher with under 3 samples or with equal losses
    is left out; a rule that scores all samples of a teacher alike has correlation 0 there.

    Returns:
        In [-1, 1], or None where no teacher is kept.
    """
    total_R, weight = np.zeros(len(score_RB)), 0
    for group in np.unique(group_B):
        index = np.flatnonzero(group_B == group)
        if len(index) < _MIN_GROUP_SIZE or np.ptp(loss_B[index]) == 0:
            continue
        loss_rank_G = average_ranks(loss_B[index])
        loss_rank_G -= loss_rank_G.mean()
        score_rank_RG = np.apply_along_axis(average_ranks, 1, score_RB[:, index])
        score_rank_RG -= score_rank_RG.mean(axis=1, keepdims=True)
        norm_R = np.linalg.norm(score_rank_RG, axis=1) * np.linalg.norm(loss_rank_G)
        product_R = score_rank_RG @ loss_rank_G
        total_R += len(index) * np.divide(product_R, norm_R, out=np.zeros(len(score_RB)), where=norm_R > 0)
        weight += len(index)
    return total_R / weight if weight else None


class Correlations(NamedTuple):
    """Rank correlations of R rules, and those of the samples without one block after the other."""

    value_R: Floats
    without_block_JR: Floats

    def standard_error(self, rule: int, other: int | None = None) -> float:
        """Compute the jackknife standard error of a rule's correlation, or of its lead over another rule's.

        Blocks left out: ``SE^2 = (J - 1) / J sum_j (d_j - mean d)^2`` (docs/method.md#choice).
        """
        lead_J = self.without_block_JR[:, rule] - (0 if other is None else self.without_block_JR[:, other])
        return float(np.sqrt((len(lead_J) - 1) * lead_J.var()))

    def lead(self, rule: int, other: int) -> float:
        """Compute how much larger the rule's correlation is."""
        return float(self.value_R[rule] - self.value_R[other])


def correlations(
    score_RB: Floats, loss_B: Floats, group_B: NDArray[np.int64], image_ids: Sequence[str]
) -> Correlations | None:
    """Compute ``rank_correlations`` with jackknife replicates; None where there is no correlation.

    Blocks hold whole images: the samples of an image that several teachers saw leave together. With more than 60
    images a block has several, taken evenly over the images in the order of their ids.
    """
    value_R = rank_correlations(score_RB, loss_B, group_B)
    _, image_B = np.unique(np.array(image_ids, dtype=object).astype(str), return_inverse=True)
    num_blocks = min(int(image_B.max(initial=-1)) + 1, _MAX_BLOCKS)
    block_B = image_B % max(num_blocks, 1)
    replicates = []
    for block in range(num_blocks):
        kept = block_B != block
        without_R = rank_correlations(score_RB[:, kept], loss_B[kept], group_B[kept])
        if without_R is not None:
            replicates.append(without_R)
    if value_R is None or len(replicates) < 2:
        return None
    return Correlations(value_R, np.array(replicates))
