"""The portfolio moves its batch to the strategies whose minutes find the most, and forgets nothing it needs."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.selection.earlier_picks import EarlierPick, localization_loss
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import sort_descending
from tasks.selection.strategies.portfolio import Portfolio
from tasks.selection.thompson import LOSS_KINDS, Belief, allocate, beliefs

ARMS = ("classes", "places", "dull", "random")
CLASSIFICATION = {"classes": 3.0, "places": 0.5, "dull": 0.5, "random": 1.0}
LOCALIZATION = {"classes": 0.5, "places": 3.0, "dull": 0.5, "random": 1.0}
"""Loss that a minute of each strategy finds, of a teacher of level 1."""


def pick(arm: str, batch: int, classification: float, localization: float, minutes: float = 1.0) -> EarlierPick:
    return EarlierPick("", batch, arm, classification, localization, minutes)


def simulated_shares(seed: int, num_batches: int = 8, batch_size: int = 24) -> list[Counter[str]]:
    """Shares of each batch, where the losses of all fall by a fifth with each teacher and single images differ much."""
    rng = np.random.default_rng(seed)
    picks: list[EarlierPick] = []
    shares = []
    for batch in range(num_batches):
        arms = allocate({kind: beliefs(picks, ARMS, kind) for kind in LOSS_KINDS}, batch_size, rng)
        shares.append(Counter(arms))
        for arm in arms:
            minutes = float(rng.uniform(0.5, 4))
            level = 0.8**batch * minutes * rng.gamma(0.5, 2, 2)
            picks.append(pick(arm, batch, level[0] * CLASSIFICATION[arm], level[1] * LOCALIZATION[arm], minutes))
    return shares


def regret(shares: Counter[str]) -> float:
    """Mean over both kinds of loss of what the best strategies would have found more, half of the batch for each."""
    total = shares.total()
    found = sum(count * (CLASSIFICATION[arm] + LOCALIZATION[arm]) / 2 for arm, count in shares.items()) / total
    return 1.75 - found


def test_regret_shrinks_and_both_kinds_of_loss_keep_their_strategy() -> None:
    batches = list(zip(*(simulated_shares(seed) for seed in range(20)), strict=True))
    mean_regret = [float(np.mean([regret(shares) for shares in of_batch])) for of_batch in batches]
    equal_shares = regret(Counter(ARMS))
    assert mean_regret[0] == pytest.approx(equal_shares, rel=0.15)  # nothing is known yet
    assert mean_regret[-1] < 0.35 * equal_shares
    assert np.mean(mean_regret[4:]) < np.mean(mean_regret[:4])
    last = sum(batches[-1], Counter())
    assert last["classes"] / last.total() == pytest.approx(0.5, abs=0.15)
    assert last["places"] / last.total() == pytest.approx(0.5, abs=0.15)


def test_a_strategy_that_has_become_worse_loses_its_share() -> None:
    rng = np.random.default_rng(0)
    early = [pick("a", batch, 4, 4) for batch in range(4) for _ in range(10)]
    early += [pick("b", batch, 1, 1) for batch in range(4) for _ in range(10)]
    late = [
        pick(arm, batch, worth, worth) for batch in range(4, 12) for arm, worth in (("a", 1), ("b", 4)) for _ in "12345"
    ]
    for picks, better in ((early, "a"), (early + late, "b")):
        turns = allocate({kind: beliefs(picks, ["a", "b"], kind) for kind in LOSS_KINDS}, 200, rng)
        assert turns.count(better) > 180


def test_beliefs_written_out() -> None:
    """Batch 1 is the newer one. Its scale is 6 per 4 minutes, that of batch 0 is 20 per 2 minutes."""
    picks = [
        pick("a", 0, 20, 0, 1), pick("b", 0, 0, 0, 1),
        pick("a", 1, 3, 0, 1), pick("b", 1, 3, 0, 3),
    ]  # fmt: skip
    found = beliefs(picks, ["a", "b", "c"], "classification")
    prior = 4 * 1.5  # minutes: four images of the mean length
    total = 0.8 * 1 + 1 * 1 + prior
    mean = (0.8 * 2 + 1 * 2 + prior) / total
    variance = (0.8 * (2 - mean)) ** 2 + (2 - mean) ** 2 + prior**2 / 4
    assert found["a"] == Belief(2, 2.0, pytest.approx(mean), pytest.approx(variance**0.5 / total))
    assert found["c"] == Belief(0, 0.0, 1.0, 0.5)
    assert beliefs(picks, ["a"], "localization")["a"] == Belief(0, 0.0, 1.0, 0.5)  # nothing was found: says nothing


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.just(0.0) | st.floats(0.01, 9), st.floats(0.1, 9))
    ),
    st.floats(0.5, 4),
)
def test_beliefs_do_not_depend_on_the_scale_of_the_loss_or_the_order(rows: list[Any], factor: float) -> None:
    picks = [pick(arm, batch, loss, loss, minutes) for arm, batch, loss, minutes in rows]
    scaled = [pick(arm, batch, factor * loss, loss, minutes) for arm, batch, loss, minutes in reversed(rows)]
    there, back = beliefs(picks, "abc", "classification"), beliefs(scaled, "abc", "classification")
    for arm in "abc":
        assert there[arm].std > 0
        assert (there[arm].mean, there[arm].std) == pytest.approx((back[arm].mean, back[arm].std), rel=1e-6)


def test_place_loss_counts_what_overlaps_and_not_what_was_missed() -> None:
    objects = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], dtype=np.float64)
    assert localization_loss(np.array([[0.0, 0, 10, 5]]), objects) == pytest.approx(0.5)
    assert localization_loss(objects, objects) == 0
    assert localization_loss(np.zeros((0, 4)), objects) == 0
    assert localization_loss(objects, np.zeros((0, 4))) == 0


class ByColumn:
    """Falling order of a column."""

    def __init__(self, column: str) -> None:
        self.column = column

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        return sort_descending(pool.candidates, self.column)

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        return f"{self.column} {position} of {num_candidates}"


def pool(picks: list[EarlierPick] | None = None, batch_size: int = 10) -> PoolView:
    ids = pd.Index([f"{number:03d}" for number in range(100)], name="image_id")
    columns = {"up": np.arange(100), "down": -np.arange(100)}
    return PoolView(pd.DataFrame(columns, index=ids), batch_size=batch_size, earlier_picks=lambda: picks or [])


def test_each_place_goes_to_the_next_image_of_its_strategy() -> None:
    strategy = Portfolio({"up": ByColumn("up"), "down": ByColumn("down")})
    order = strategy.rank(pool(), seed=3)
    assert sorted(order) == [f"{number:03d}" for number in range(100)]
    for arm, expected in (("up", sorted(order, reverse=True)), ("down", sorted(order))):
        own = [image for image in order[:40] if strategy.picked_by(image) == arm]
        assert own == expected[: len(own)]  # the two orders meet only after 50 images
        assert own
    assert sum(share["share"] for share in strategy.shares.values()) == pytest.approx(1)
    candidate = pd.Series({"image_id": order[0]})
    reason = strategy.reason(candidate, position=1, num_candidates=100)
    arm = strategy.picked_by(order[0])
    assert reason == f"portfolio (rank 1 of 100), turn of {arm}: {arm} 1 of 100"


def test_order_is_a_function_of_seed_pool_and_answers() -> None:
    def order(seed: int, picks: list[EarlierPick], *, turned: bool = False) -> list[str]:
        view = pool(picks)
        if turned:
            view = PoolView(view.candidates[::-1], batch_size=10, earlier_picks=lambda: picks)
        return Portfolio({"up": ByColumn("up"), "down": ByColumn("down")}).rank(view, seed=seed)

    assert order(1, []) == order(1, [], turned=True)
    assert order(1, []) != order(2, [])
    found_much = [pick("up", 0, 9, 9) for _ in range(20)] + [pick("down", 0, 1, 1) for _ in range(20)]
    assert order(1, found_much)[:10] == [f"{number:03d}" for number in range(99, 89, -1)]


def test_one_image_after_another_until_the_pool_is_empty() -> None:
    strategy = Portfolio({"up": ByColumn("up"), "down": ByColumn("down")})
    assert sorted(strategy.rank(pool(batch_size=100), seed=0)) == [f"{number:03d}" for number in range(100)]
