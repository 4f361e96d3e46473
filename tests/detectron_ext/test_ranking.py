"""Pairs, rank correlations and their standard errors, held against written-out computations."""

import numpy as np
import pytest
import torch
from scipy import stats

from detectron_ext.dwa import ranking_loss
from detectron_ext.ranking import MAX_PAIRS, correlations, rank_correlations, ranking_pairs

ONE_GROUP = np.zeros(3, dtype=np.int64)


def all_of(loss: np.ndarray) -> np.ndarray:
    return np.ones((1, len(loss)), dtype=bool)


def test_the_loss_is_the_written_out_sum_over_pairs_of_one_teacher() -> None:
    """Samples 0, 1 and 2 share a teacher, 3 and 4 another: rank gaps 1, 2 and 1 of 4, and 1 of 1."""
    loss, group = np.array([3.0, 1.0, 2.0, 5.0, 9.0]), np.array([0, 0, 0, 1, 1])
    score = np.array([0.2, 0.8, 0.5, 0.1, 0.3])

    def softplus(harder: int, easier: int) -> float:
        return float(np.log1p(np.exp(-(score[harder] - score[easier]) / 0.1)))

    first = (softplus(0, 2) * 1 + softplus(0, 1) * 2 + softplus(2, 1) * 1) / 4
    expected = (3 * first + 2 * softplus(4, 3)) / 5
    pairs = ranking_pairs(loss, group, all_of(loss), seed=0)
    assert ranking_loss(torch.tensor(score[None]).float(), pairs).item() == pytest.approx(expected, rel=1e-5)


def test_a_pair_weighs_as_the_distance_of_its_ranks() -> None:
    """The surest pair, first against last of eleven, weighs ten times as much as two neighbors."""
    loss = np.arange(11.0)
    pairs = ranking_pairs(loss, np.zeros(11, dtype=np.int64), all_of(loss), seed=0)
    gap_P = (pairs.harder_SP - pairs.easier_SP)[0].numpy()
    assert (gap_P.min(), gap_P.max(), len(gap_P)) == (1, 10, 55)
    assert pairs.weight_SP[0].numpy() == pytest.approx(gap_P / gap_P.sum())


def test_equal_losses_form_no_pair_and_leave_a_gradient() -> None:
    pairs = ranking_pairs(np.ones(3), ONE_GROUP, all_of(np.ones(3)), seed=0)
    score = torch.rand(1, 3, requires_grad=True)
    loss = ranking_loss(score, pairs).sum()
    loss.backward()
    assert loss.item() == 0


def test_pairs_are_of_training_samples_alone() -> None:
    loss, training = np.arange(8.0), np.arange(8) % 2 == np.array([[0], [1]])
    pairs = ranking_pairs(loss, np.zeros(8, dtype=np.int64), training, seed=0)
    for network, parity in enumerate((0, 1)):
        used = pairs.weight_SP[network] > 0
        assert set((pairs.harder_SP[network][used] % 2).tolist()) == {parity}
        assert set((pairs.easier_SP[network][used] % 2).tolist()) == {parity}


def test_memory_is_bounded_and_drawn_pairs_are_representative() -> None:
    """Of 4.5 million pairs 4,096 are drawn; their weighted loss is near that of all pairs."""
    rng = np.random.default_rng(0)
    loss = rng.random(3000)
    pairs = ranking_pairs(loss, np.zeros(3000, dtype=np.int64), all_of(loss), seed=1)
    assert pairs.weight_SP.shape == (1, MAX_PAIRS)
    score = loss + 0.3 * rng.normal(size=3000)
    found = ranking_loss(torch.tensor(score[None]).float(), pairs).item()
    gap = stats.rankdata(loss)[:, None] - stats.rankdata(loss)[None, :]
    margin = score[:, None] - score[None, :]
    exact = (np.log1p(np.exp(-margin / 0.1)) * gap)[gap > 0].sum() / gap[gap > 0].sum()
    assert found == pytest.approx(exact, rel=0.1)


def test_the_correlation_is_spearmans_within_teachers_weighted_by_size() -> None:
    rng = np.random.default_rng(2)
    loss, score = rng.random(30), np.round(rng.random((2, 30)), 1)
    group = np.repeat([0, 1, 2, 3], [10, 15, 3, 2])
    found = rank_correlations(score, loss, group)
    assert found is not None
    for rule in range(2):
        by_group = [stats.spearmanr(score[rule, group == g], loss[group == g]).statistic for g in range(3)]
        assert found[rule] == pytest.approx(np.average(by_group, weights=[10, 15, 3]))


def test_a_score_that_is_the_same_for_all_ranks_nothing() -> None:
    found = rank_correlations(np.array([[1.0, 1, 1, 1], [1, 2, 3, 4]]), np.arange(4.0), np.zeros(4, dtype=np.int64))
    assert found is not None
    assert found.tolist() == pytest.approx([0, 1])
    assert rank_correlations(np.ones((1, 4)), np.ones(4), np.zeros(4, dtype=np.int64)) is None


def test_the_standard_error_is_the_jackknife_written_out() -> None:
    rng = np.random.default_rng(3)
    loss, score = rng.random(12), rng.random((2, 12))
    group, ids = np.zeros(12, dtype=np.int64), [f"{number:02d}" for number in range(12)]
    found = correlations(score, loss, group, ids)
    assert found is not None
    leads = []
    for left_out in range(12):
        kept = np.arange(12) != left_out
        values = [stats.spearmanr(row[kept], loss[kept]).statistic for row in score]
        leads.append(values[1] - values[0])
    assert found.standard_error(1, 0) == pytest.approx(np.sqrt(11 / 12 * np.sum((leads - np.mean(leads)) ** 2)))
    assert found.standard_error(0, 0) == 0


def test_the_standard_error_is_the_spread_over_draws() -> None:
    """Of the lead of one noisy score over another, over 200 draws of 80 images."""
    leads, errors = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        loss = rng.normal(size=80)
        score = loss + rng.normal(size=(2, 80)) * [[1.0], [1.5]]
        found = correlations(score, loss, np.zeros(80, dtype=np.int64), [f"{number:02d}" for number in range(80)])
        assert found is not None
        leads.append(found.lead(0, 1))
        errors.append(found.standard_error(0, 1))
    assert np.mean(errors) == pytest.approx(np.std(leads), rel=0.2)


def test_an_image_that_two_teachers_saw_leaves_as_one() -> None:
    """Twice the same six images are worth no more than once: the standard error is that of six."""
    rng = np.random.default_rng(4)
    loss, score, ids = rng.random(6), rng.random((1, 6)), list("abcdef")
    once = correlations(score, loss, np.zeros(6, dtype=np.int64), ids)
    twice = correlations(np.tile(score, 2), np.tile(loss, 2), np.repeat([0, 1], 6), ids * 2)
    assert once is not None
    assert twice is not None
    assert twice.standard_error(0) == pytest.approx(once.standard_error(0))
