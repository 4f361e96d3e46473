"""Orders and budgets as plain functions, mostly by their properties."""

import hashlib
import itertools
from typing import get_args

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.data.schemas import CANDIDATE_SCORES, UNCERTAINTY
from tasks.params.stages import STRATEGY_NAMES, BudgetParams, PortfolioArm
from tasks.selection.annotation_cost import fit_annotation_cost
from tasks.selection.budget import costs, expected_minutes, fill_budget, num_random_picks
from tasks.selection.objectives.registry import READY_STRATEGIES
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import seeded_shuffle
from tasks.selection.strategies.registry import STRATEGIES

ids = st.lists(st.integers(0, 999).map("{:03d}".format), unique=True, max_size=30)
fractions = st.floats(0, 1)


@st.composite
def budget_cases(draw):
    """An order, a uniform draw, costs, a budget and an exploration share."""
    order = draw(ids)
    return {
        "ranking": order,
        "shuffled": draw(st.permutations(order)),
        "cost": {image: draw(st.floats(0.01, 20)) for image in order},
        "amount": draw(st.floats(0.01, 100)),
        "random_frac": draw(fractions),
    }


def candidate_table(uncertainties: dict[str, float], **columns: object) -> pd.DataFrame:
    names = [*CANDIDATE_SCORES[1:], *UNCERTAINTY.names[1:], "expected_minutes"]
    table = pd.DataFrame(0.5, index=pd.Index(list(uncertainties), name="image_id"), columns=names)
    unmeasured = {"objectness_entropy": 0.0, "w_objectness_entropy": 0.0}
    fixed = {"uncertainty": list(uncertainties.values()), "has_no_detections": False, "num_boxes": 3}
    return table.assign(**unmeasured, **fixed, **columns)


@given(budget_cases())
def test_batch_is_never_over_budget_and_holds_no_image_twice(case):
    batch = fill_budget(**case)
    spent = sum(case["cost"][image] for image in batch.selected)
    assert spent <= case["amount"] + 1e-6 or len(batch.selected) == 1
    assert len(set(batch.selected)) == len(batch.selected)
    assert set(batch.selected) <= set(case["ranking"])
    assert bool(batch.selected) == bool(case["ranking"])  # at least one image, if there is any


@given(budget_cases())
def test_batch_ends_only_where_the_next_image_does_not_fit(case):
    batch = fill_budget(**case)
    whole = fill_budget(**{**case, "amount": float("inf")}).selected
    assert whole[: len(batch.selected)] == batch.selected
    if len(batch.selected) < len(whole):
        longer = whole[: len(batch.selected) + 1]
        assert sum(case["cost"][image] for image in longer) > case["amount"]


@given(budget_cases(), st.floats(0, 50))
def test_larger_budget_only_appends(case, more):
    small, large = fill_budget(**case), fill_budget(**{**case, "amount": case["amount"] + more})
    assert large.selected[: len(small.selected)] == small.selected
    assert small.random_picks <= large.random_picks


@given(budget_cases())
def test_explored_share_is_the_head_of_the_draw_and_the_rest_the_head_of_the_order(case):
    batch = fill_budget(**case)
    explored = num_random_picks(len(batch.selected), case["random_frac"])
    assert batch.random_picks == set(case["shuffled"][:explored])
    wanted = [image for image in case["ranking"] if image not in batch.random_picks]
    chosen = [image for image in batch.selected if image not in batch.random_picks]
    assert set(chosen) == set(wanted[: len(batch.selected) - explored])


@given(budget_cases(), st.integers(1, 40))
def test_image_budget_takes_exactly_that_many_or_all(case, amount):
    case |= {"cost": dict.fromkeys(case["ranking"], 1.0), "amount": amount + 0.5}
    assert len(fill_budget(**case).selected) == min(amount, len(case["ranking"]))


@given(fractions, st.integers(0, 10_000))
def test_explored_count_grows_by_at_most_one_per_image(frac, size):
    assert num_random_picks(size + 1, frac) - num_random_picks(size, frac) in (0, 1)
    assert abs(num_random_picks(size, frac) - frac * size) <= 0.5 + 1e-6


@given(ids, st.randoms(use_true_random=False), st.integers(0, 2**31 - 1))
def test_draw_depends_on_the_set_of_ids_only(order, shuffler, seed):
    shuffled = shuffler.sample(order, len(order))
    assert seeded_shuffle(order, seed=seed, purpose="explore") == seeded_shuffle(shuffled, seed=seed, purpose="explore")
    assert sorted(seeded_shuffle(order, seed=seed, purpose="explore")) == sorted(order)


def test_draw_changes_with_seed_purpose_and_pool():
    pool = [f"{i:02d}" for i in range(40)]
    first = seeded_shuffle(pool, seed=7, purpose="explore")
    salt = hashlib.sha256("\n".join(["explore", "7", *sorted(pool)]).encode()).hexdigest()
    assert first == sorted(pool, key=lambda image: hashlib.sha256(f"{salt}{image}".encode()).digest())
    assert first != seeded_shuffle(pool, seed=8, purpose="explore")
    assert first != seeded_shuffle(pool, seed=7, purpose="random")
    assert [image for image in first if image != "00"] != seeded_shuffle(pool[1:], seed=7, purpose="explore")


def test_draw_is_uniform():
    """Each of 8 images comes first about equally often over 4000 seeds (chi-square, 7 degrees, p 0.001)."""
    pool = list("abcdefgh")
    counts = dict.fromkeys(pool, 0)
    for seed in range(4000):
        counts[seeded_shuffle(pool, seed=seed, purpose="explore")[0]] += 1
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 24.3


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from([0.1, 0.5, 0.9]), min_size=1))
def test_uncertainty_order_is_top_k_with_ties_by_id(uncertainties):
    order = STRATEGIES["uncertainty"].rank(PoolView(candidate_table(uncertainties)), seed=0)
    assert order == sorted(uncertainties, key=lambda image: (-uncertainties[image], image))


def test_reason_claims_no_mixture_where_the_uncertainty_is_none():
    mixed = candidate_table({"a": 0.5}, w_confidence=0.2, w_entropy=0.5, w_overlap=0.3).iloc[0]
    say = STRATEGIES["uncertainty"].reason
    assert "weights 0.50/0.30/0.20" in say(mixed, position=1, num_candidates=9)
    other = candidate_table({"a": 0.7}, w_confidence=0.2, w_entropy=0.5, w_overlap=0.3).iloc[0]
    assert say(other, position=1, num_candidates=9) == "uncertainty 0.70 (rank 1 of 9)"


def test_entropy_strategy_ignores_uncertainty():
    candidates = candidate_table({"a": 0.9, "b": 0.1}, entropy=[0.2, 0.8])
    assert STRATEGIES["entropy"].rank(PoolView(candidates), seed=0) == ["b", "a"]


def test_random_strategy_is_the_draw_of_its_own_purpose():
    candidates = candidate_table(dict.fromkeys("abcdef", 0.5))
    assert STRATEGIES["random"].rank(PoolView(candidates), seed=3) == seeded_shuffle("abcdef", seed=3, purpose="random")


def test_registry_holds_every_name_that_params_allow():
    assert {*STRATEGIES, *READY_STRATEGIES, "composite", "portfolio"} == set(STRATEGY_NAMES)
    assert {*get_args(PortfolioArm), "portfolio"} == set(STRATEGY_NAMES)


@pytest.mark.parametrize(("unit", "expected"), [("images", [1.0, 1.0]), ("boxes", [1.0, 4.0]), ("minutes", [0.2, 2.2])])
def test_costs_by_unit(unit, expected):
    budget = BudgetParams(
        unit=unit, amount=10.0, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_annotations=20, relabel_frac=0.0
    )
    table = candidate_table({"a": 0.1, "b": 0.2}, expected_boxes=[0.0, 4.0])
    table["expected_minutes"] = expected_minutes(table["expected_boxes"], fit_annotation_cost([], budget))
    assert list(costs(table, budget).values()) == pytest.approx(expected)


@given(st.lists(st.just(0.0), min_size=30, max_size=60), st.integers(1, 20))
def test_images_without_detections_do_not_fill_a_box_budget_for_free(nothing, amount):
    assume(len(nothing) > amount)
    table = candidate_table({f"{i:02d}": 0.5 for i in range(len(nothing))}, expected_boxes=nothing)
    budget = BudgetParams(
        unit="boxes",
        amount=float(amount),
        minutes_per_box=0.5,
        minutes_per_image=0.2,
        min_timed_annotations=20,
        relabel_frac=0.0,
    )
    order = list(table.index)
    assert len(fill_budget(order, order, costs(table, budget), amount=amount, random_frac=0).selected) == amount


def test_explored_images_stand_between_the_others():
    order = [f"{i:02d}" for i in range(40)]
    batch = fill_budget(order, order[::-1], dict.fromkeys(order, 1.0), amount=20, random_frac=0.1)
    assert [rank for rank, image in enumerate(batch.selected, start=1) if image in batch.random_picks] == [5, 15]
    assert batch.random_picks == {"39", "38"}


def test_image_wanted_and_drawn_counts_as_explored_and_the_next_one_moves_up():
    order = list("abcdefgh")
    batch = fill_budget(order, order, dict.fromkeys(order, 1.0), amount=4, random_frac=0.25)
    assert (batch.selected, batch.random_picks) == (tuple("abcd"), {"a"})


def test_every_budget_is_filled_by_brute_force_count():
    """Against the definition: the largest k whose best batch of k fits."""
    order, draw = list("abcdef"), list("fbdace")
    cost = dict(zip("abcdef", [3.0, 1.0, 4.0, 1.5, 0.5, 2.0], strict=True))
    for amount, frac in itertools.product([0.1, 3, 5, 7.5, 9, 12, 50], [0, 0.3, 0.5, 1]):
        fits = 1
        for size in range(1, 7):
            explored = set(draw[: num_random_picks(size, frac)])
            best = explored | set([image for image in order if image not in explored][: size - len(explored)])
            fits = size if sum(cost[image] for image in best) <= amount else fits
        assert len(fill_budget(order, draw, cost, amount=amount, random_frac=frac).selected) == fits
