from typing import Any

import pytest

from tasks.study.pool_ranking import best_single_metric, compare_rules, rank_rules, standard_error

FOUND = {"entropy": (0.5, 0.3), "confidence": (0.1, 0.2), "equal": (0.7, 0.7), "learned": (0.6, 0.5)}


def rows() -> list[dict[str, Any]]:
    """Seed 2 is 0.1 above seed 1 in the learned rule, and the same in the others; round 1 as in FOUND, 0 without."""
    return [
        {
            "seed": seed,
            "round": number,
            "rule": rule,
            "spearman": _spearman(rule, seed, number),
        }
        for seed in (1, 2)
        for number in (0, 1)
        for rule in FOUND
    ]


def _spearman(rule: str, seed: int, number: int) -> float | None:
    if (rule, number) == ("learned", 0):
        return None
    return FOUND[rule][number] + (0.1 if (rule, seed) == ("learned", 2) else 0.0)


def test_rules_are_ranked_by_their_mean_over_rounds_and_seeds() -> None:
    rankings = rank_rules(rows())
    assert [ranking.rule for ranking in rankings] == ["equal", "learned", "entropy", "confidence"]
    learned = rankings[1]
    assert learned.by_seed == pytest.approx({1: 0.5, 2: 0.6})
    assert learned.by_round == pytest.approx({1: 0.55})
    assert learned.mean == pytest.approx(0.55)
    assert best_single_metric(rankings) == "entropy"
    assert rank_rules([]) == []
    assert best_single_metric([]) is None


def test_a_rule_is_compared_with_the_best_metric_by_seed() -> None:
    rankings = rank_rules(rows(), first_round=1)
    found = compare_rules(rankings, "learned", "entropy")
    assert found is not None
    # seed 1: 0.5 - 0.3; seed 2: 0.6 - 0.3; standard deviation 0.0707, over the root of 2
    assert found.differences == pytest.approx((0.2, 0.3))
    assert standard_error(found) == pytest.approx(0.05)
    assert compare_rules(rankings, "value", "entropy") is None
