"""How well each rule ranks the images of the pool by the teacher's realized loss, over the rounds of a study.

Rules are equal weights, each metric alone, the learned mixture, the rule that a round chose, and expected value. The
question (docs/method.md#claims): is the learned mixture at least as good as the best single metric?
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tasks.study.statistics import Comparison, compare

NOT_SINGLE_METRICS = ("chosen", "equal", "learned", "value", "value_per_minute")
"""Rules that are no metric on its own."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RuleRanking:
    """One rule over the rounds in which it has a figure."""

    rule: str
    mean: float
    """Spearman correlation, mean over rounds of a seed, then over seeds."""
    by_round: dict[int, float]
    """Mean over seeds."""
    by_seed: dict[int, float]
    """Mean over rounds."""


def rank_rules(rows: Iterable[Row], *, first_round: int = 0) -> list[RuleRanking]:
    """Summarize ``pool_ranking.parquet``, the best rule first.

    Args:
        rows: of POOL_RANKING, of one arm.
        first_round: earlier rounds do not count: a learned rule needs labels of one batch at least.
    """
    known = [row for row in rows if row["spearman"] is not None and row["round"] >= first_round]
    rankings = []
    for rule in sorted({row["rule"] for row in known}):
        own = [row for row in known if row["rule"] == rule]
        by_seed = _means(own, "seed")
        rankings.append(RuleRanking(rule, fmean(by_seed.values()), _means(own, "round"), by_seed))
    return sorted(rankings, key=lambda ranking: (-ranking.mean, ranking.rule))


def compare_rules(rankings: Sequence[RuleRanking], rule: str, other: str) -> Comparison | None:
    """Mean correlation of one rule minus that of another, paired by seed; None without a seed in common."""
    found = {ranking.rule: ranking for ranking in rankings}
    if rule not in found or other not in found:
        return None
    seeds = [seed for seed in found[rule].by_seed if seed in found[other].by_seed]
    differences = [found[rule].by_seed[seed] - found[other].by_seed[seed] for seed in seeds]
    return compare(differences, seed=0) if differences else None


def best_single_metric(rankings: Sequence[RuleRanking]) -> str | None:
    """Return the metric whose mean is highest; None without any."""
    return next((ranking.rule for ranking in rankings if ranking.rule not in NOT_SINGLE_METRICS), None)


def standard_error(comparison: Comparison) -> float | None:
    """Standard error of the mean difference; None with a single seed."""
    count = len(comparison.differences)
    return float(np.std(comparison.differences, ddof=1) / np.sqrt(count)) if count > 1 else None


def _means(rows: Sequence[Row], column: str) -> dict[int, float]:
    return {key: fmean(r["spearman"] for r in rows if r[column] == key) for key in sorted({r[column] for r in rows})}
