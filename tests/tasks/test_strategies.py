"""Orders and budgets as plain functions, mostly by their properties."""

import itertools

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.annotation_cost import annotation_cost
from tasks.contracts import SCORES, WEIGHTS
from tasks.sections import BudgetParams, SelectParams
from tasks.strategies.base import drawn
from tasks.strategies.budget import costs, expected_minutes, explored_of, fill
from tasks.strategies.registry import STRATEGIES

ids = st.lists(st.integers(0, 999).map("{:03d}".format), unique=True, max_size=30)
fractions = st.floats(0, 1)


@st.composite
def batches(draw):
    """An order, a uniform draw, costs, a budget and an exploration share."""
    order = draw(ids)
    return {
        "order": order,
        "draw": draw(st.permutations(order)),
        "cost": {image: draw(st.floats(0.01, 20)) for image in order},
        "amount": draw(st.floats(0.01, 100)),
        "explore_frac": draw(fractions),
    }


def candidates_of(uncertainties: dict[str, float], **columns: object) -> pd.DataFrame:
    names = [*SCORES.names[1:], *WEIGHTS.names[1:], "expected_boxes", "expected_minutes"]
    table = pd.DataFrame(0.5, index=pd.Index(list(uncertainties), name="image_id"), columns=names)
    return table.assign(uncertainty=list(uncertainties.values()), zero_detections=False, num_boxes=3, **columns)


@given(batches())
def test_batch_is_never_over_budget_and_holds_no_image_twice(case):
    batch = fill(**case)
    spent = sum(case["cost"][image] for image in batch.picked)
    assert spent <= case["amount"] + 1e-6 or len(batch.picked) == 1
    assert len(set(batch.picked)) == len(batch.picked)
    assert set(batch.picked) <= set(case["order"])
    assert bool(batch.picked) == bool(case["order"])  # at least one image, if there is any


@given(batches())
def test_batch_ends_only_where_the_next_image_does_not_fit(case):
    batch = fill(**case)
    whole = fill(**{**case, "amount": float("inf")}).picked
    assert whole[: len(batch.picked)] == batch.picked
    if len(batch.picked) < len(whole):
        longer = whole[: len(batch.picked) + 1]
        assert sum(case["cost"][image] for image in longer) > case["amount"]


@given(batches(), st.floats(0, 50))
def test_larger_budget_only_appends(case, more):
    small, large = fill(**case), fill(**{**case, "amount": case["amount"] + more})
    assert large.picked[: len(small.picked)] == small.picked
    assert small.explored <= large.explored


@given(batches())
def test_explored_share_is_the_head_of_the_draw_and_the_rest_the_head_of_the_order(case):
    batch = fill(**case)
    explored = explored_of(len(batch.picked), case["explore_frac"])
    assert batch.explored == set(case["draw"][:explored])
    wanted = [image for image in case["order"] if image not in batch.explored]
    chosen = [image for image in batch.picked if image not in batch.explored]
    assert set(chosen) == set(wanted[: len(batch.picked) - explored])


@given(batches(), st.integers(1, 40))
def test_image_budget_takes_exactly_that_many_or_all(case, amount):
    case |= {"cost": dict.fromkeys(case["order"], 1.0), "amount": amount + 0.5}
    assert len(fill(**case).picked) == min(amount, len(case["order"]))


@given(fractions, st.integers(0, 10_000))
def test_explored_count_grows_by_at_most_one_per_image(frac, size):
    assert explored_of(size + 1, frac) - explored_of(size, frac) in (0, 1)
    assert abs(explored_of(size, frac) - frac * size) <= 0.5 + 1e-6


@given(ids, st.randoms(use_true_random=False), st.integers(0, 2**31 - 1))
def test_draw_depends_on_the_set_of_ids_only(order, shuffler, seed):
    shuffled = shuffler.sample(order, len(order))
    assert drawn(order, seed=seed, purpose="explore") == drawn(shuffled, seed=seed, purpose="explore")
    assert sorted(drawn(order, seed=seed, purpose="explore")) == sorted(order)


def test_draw_changes_with_seed_purpose_and_pool():
    pool = [f"{i:02d}" for i in range(40)]
    first = drawn(pool, seed=7, purpose="explore")
    assert first != drawn(pool, seed=8, purpose="explore")
    assert first != drawn(pool, seed=7, purpose="random")
    assert [image for image in first if image != "00"] != drawn(pool[1:], seed=7, purpose="explore")


def test_draw_is_uniform():
    """Each of 8 images comes first about equally often over 4000 seeds (chi-square, 7 degrees, p 0.001)."""
    pool = list("abcdefgh")
    counts = dict.fromkeys(pool, 0)
    for seed in range(4000):
        counts[drawn(pool, seed=seed, purpose="explore")[0]] += 1
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 24.3


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from([0.1, 0.5, 0.9]), min_size=1))
def test_uncertainty_order_is_top_k_with_ties_by_id(uncertainties):
    order = STRATEGIES["uncertainty"].order(candidates_of(uncertainties), seed=0)
    assert order == sorted(uncertainties, key=lambda image: (-uncertainties[image], image))


def test_reason_claims_no_mixture_where_the_uncertainty_is_none():
    mixed = candidates_of({"a": 0.5}, w_confidence=0.2, w_entropy=0.5, w_overlap=0.3).iloc[0]
    say = STRATEGIES["uncertainty"].reason
    assert "weights 0.50/0.30/0.20" in say(mixed, place=1, of=9)
    other = candidates_of({"a": 0.7}, w_confidence=0.2, w_entropy=0.5, w_overlap=0.3).iloc[0]
    assert say(other, place=1, of=9) == "uncertainty 0.70 (rank 1 of 9)"


def test_entropy_strategy_ignores_uncertainty():
    candidates = candidates_of({"a": 0.9, "b": 0.1}, entropy=[0.2, 0.8])
    assert STRATEGIES["entropy"].order(candidates, seed=0) == ["b", "a"]


def test_random_strategy_is_the_draw_of_its_own_purpose():
    candidates = candidates_of(dict.fromkeys("abcdef", 0.5))
    assert STRATEGIES["random"].order(candidates, seed=3) == drawn("abcdef", seed=3, purpose="random")


def test_registry_holds_every_name_that_params_allow():
    assert set(STRATEGIES) == set(SelectParams.model_fields["strategy"].annotation.__args__)


@pytest.mark.parametrize(("unit", "expected"), [("images", [1.0, 1.0]), ("boxes", [1.0, 4.0]), ("minutes", [0.2, 2.2])])
def test_costs_by_unit(unit, expected):
    budget = BudgetParams(unit=unit, amount=10.0, minutes_per_box=0.5, minutes_per_image=0.2, min_timed_answers=20)
    table = candidates_of({"a": 0.1, "b": 0.2}, expected_boxes=[0.0, 4.0])
    table["expected_minutes"] = expected_minutes(table["expected_boxes"], annotation_cost([], budget))
    assert list(costs(table, budget).values()) == pytest.approx(expected)


@given(st.lists(st.just(0.0), min_size=30, max_size=60), st.integers(1, 20))
def test_images_without_detections_do_not_fill_a_box_budget_for_free(nothing, amount):
    assume(len(nothing) > amount)
    table = candidates_of({f"{i:02d}": 0.5 for i in range(len(nothing))}, expected_boxes=nothing)
    budget = BudgetParams(
        unit="boxes", amount=float(amount), minutes_per_box=0.5, minutes_per_image=0.2, min_timed_answers=20
    )
    order = list(table.index)
    assert len(fill(order, order, costs(table, budget), amount=amount, explore_frac=0).picked) == amount


def test_explored_images_stand_between_the_others():
    order = [f"{i:02d}" for i in range(40)]
    batch = fill(order, order[::-1], dict.fromkeys(order, 1.0), amount=20, explore_frac=0.1)
    assert [rank for rank, image in enumerate(batch.picked, start=1) if image in batch.explored] == [5, 15]
    assert batch.explored == {"39", "38"}


def test_image_wanted_and_drawn_counts_as_explored_and_the_next_one_moves_up():
    order = list("abcdefgh")
    batch = fill(order, order, dict.fromkeys(order, 1.0), amount=4, explore_frac=0.25)
    assert (batch.picked, batch.explored) == (tuple("abcd"), {"a"})


def test_every_budget_is_filled_by_brute_force_count():
    """Against the definition: the largest k whose best batch of k fits."""
    order, draw = list("abcdef"), list("fbdace")
    cost = dict(zip("abcdef", [3.0, 1.0, 4.0, 1.5, 0.5, 2.0], strict=True))
    for amount, frac in itertools.product([0.1, 3, 5, 7.5, 9, 12, 50], [0, 0.3, 0.5, 1]):
        fits = 1
        for size in range(1, 7):
            explored = set(draw[: explored_of(size, frac)])
            best = explored | set([image for image in order if image not in explored][: size - len(explored)])
            fits = size if sum(cost[image] for image in best) <= amount else fits
        assert len(fill(order, draw, cost, amount=amount, explore_frac=frac).picked) == fits
