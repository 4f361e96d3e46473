"""``results.parquet``, one row per seed, arm and round, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

import pyarrow as pa

from tasks.study.plan import StudyConfig
from tasks.study.statistics import (
    Comparison,
    Curve,
    compare_area,
    compare_final,
    cost_to_reach,
    holm,
    mean_value,
)

MINUTES = "minutes"
COST_COLUMNS = {MINUTES: "minutes", "boxes": "boxes", "images": "num_labeled"}
"""What arms are compared over, and its column of RESULTS. Claims are made over the first (docs/method.md#claims)."""
RESULTS = pa.schema(
    [
        ("seed", pa.int64()),
        ("arm", pa.string()),
        ("round", pa.int32()),
        ("minutes", pa.float64()),  # of annotation after the seed labels, as the annotator model has them
        ("num_labeled", pa.int32()),  # images
        ("boxes", pa.int32()),
        ("map", pa.float64()),  # percent; of the model that the plan names, mean over trainings
        ("teacher_map", pa.float64()),  # this and the next three of the first training, which selects images
        ("teacher_ap50", pa.float64()),
        ("student_map", pa.float64()),
        ("student_ap50", pa.float64()),
        ("trainings", pa.int32()),
        ("acquisition_weights", pa.string()),
        ("spearman_dwa", pa.float64()),  # on held-out pairs
        ("spearman_equal", pa.float64()),
        ("pool_images", pa.int32()),
        ("seconds", pa.float64()),  # of all stages, as this arm spent them
        ("train_seconds", pa.float64()),  # of the training behind it, whichever arm's it was
        ("cached_stages", pa.int32()),  # stages taken from another arm, or found unchanged
        ("code_sha256", pa.string()),  # of the code of all stages
        ("params_sha256", pa.string()),  # of params.yaml but for its seed; the same for all seeds of an arm
    ]
)
POOL_RANKING = pa.schema(
    [
        ("seed", pa.int64()),
        ("arm", pa.string()),
        ("round", pa.int32()),
        ("rule", pa.string()),
        ("spearman", pa.float64()),  # with the realized loss, over the whole unlabeled pool
    ]
)
TARGETS = (0.90, 0.95)
_BOOTSTRAP_SEED = 0
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """One arm over the seeds in which it is complete."""

    settings: list[str]
    curves_by_cost: dict[str, dict[int, Curve]]
    """By name of COST_COLUMNS, then by seed."""
    rows: list[Row]
    """All its rows, unfinished seeds too."""

    @property
    def curves(self) -> dict[int, Curve]:
        """Curves over minutes, by seed."""
        return self.curves_by_cost[MINUTES]


@dataclass(frozen=True)
class StudyResults:
    """Everything the table, the plot and the words are made of."""

    config: StudyConfig
    arms: dict[str, ArmResult]
    full_map: dict[int, float]
    """Percent, by seed: trained on all labels."""
    failures: list[str] = field(default_factory=list)
    """Arms that did not get to the end, and why, one sentence each."""


def collect_results(
    config: StudyConfig,
    rows: Sequence[Row],
    full_map: Mapping[int, float],
    failures: Sequence[str],
    bootstrap_maps: Mapping[tuple[int, str, int], Sequence[float]] | None = None,
) -> StudyResults:
    """Put the rows into the order of the plan's arms, seeds and rounds.

    Args:
        config: the study.
        rows: of ``results.parquet``; a row may also hold ``pool_spearman``, correlations by name of the rule.
        full_map: percent, by seed.
        failures: sentences on arms that did not get to the end.
        bootstrap_maps: by seed, arm and round: ``map`` on bootstrap samples of the validation images, the same samples
            for all arms.
    """
    arms = {}
    for name, settings in config.arms.items():
        own = sorted((row for row in rows if row["arm"] == name), key=lambda row: (row["seed"], row["round"]))
        curves: dict[str, dict[int, Curve]] = {cost: {} for cost in COST_COLUMNS}
        for seed in config.seeds:
            points = [row for row in own if row["seed"] == seed and row["round"] <= config.rounds]
            if len(points) == config.rounds + 1:
                draws = [(bootstrap_maps or {}).get((seed, name, row["round"]), ()) for row in points]
                for cost in COST_COLUMNS:
                    curves[cost][seed] = _curve(points, draws, cost)
        arms[name] = ArmResult(list(settings), curves, list(own))
    return StudyResults(config, arms, dict(full_map), list(failures))


def _curve(points: Sequence[Row], draws: Sequence[Sequence[float]], cost: str) -> Curve:
    """Cost and mAP by round; the draws only where every round has them."""
    costs, values = (tuple(float(row[column]) for row in points) for column in (COST_COLUMNS[cost], "map"))
    return Curve(costs, values, tuple(zip(*draws, strict=True)) if all(draws) else ())


def area(arm: ArmResult) -> float | None:
    """Mean height of the arm's curves over minutes, each over its own range, mean over seeds."""
    means = [mean_value(curve, curve.cost[0], curve.cost[-1]) for curve in arm.curves.values()]
    return fmean(means) if means else None


def final_map(arm: ArmResult) -> float | None:
    """Last mAP, mean over seeds."""
    return fmean(curve.values[-1] for curve in arm.curves.values()) if arm.curves else None


def comparisons(
    results: StudyResults, arm: str, baseline: str, cost: str = MINUTES
) -> tuple[Comparison, Comparison] | None:
    """Area and final mAP of ``arm`` minus ``baseline`` at equal cost, over the seeds both finished; None without any.

    Both are taken on the curves between rounds, over the range of costs that both of a pair cover.
    """
    ours, theirs = results.arms[arm].curves_by_cost[cost], results.arms[baseline].curves_by_cost[cost]
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mine, other = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    return compare_area(mine, other, seed=_BOOTSTRAP_SEED), compare_final(mine, other, seed=_BOOTSTRAP_SEED)


def primary_comparison(results: StudyResults, arm: str, baseline: str) -> Comparison | None:
    """Return the one comparison of a pair that a claim rests on: mean mAP over equal minutes."""
    found = comparisons(results, arm, baseline)
    return None if found is None else found[0]


def compared_pairs(results: StudyResults) -> list[tuple[str, str]]:
    """Every arm with every reference; two references once, the later one first.

    A reference with the very curves of an earlier one would say everything twice: only that it is the same is said.
    """
    duplicates: dict[str, set[str]] = {}
    for baseline in results.config.all_baselines:
        curves = results.arms[baseline].curves
        if not curves or all(curves != results.arms[other].curves for other in duplicates):
            duplicates[baseline] = {baseline, *duplicates}
    return [(arm, other) for other, known in duplicates.items() for arm in results.arms if arm not in known]


def adjusted_p_values(results: StudyResults) -> dict[tuple[str, str], float | None]:
    """Holm-adjusted p of the primary comparison of each pair that was compared, by arm and reference."""
    pairs = compared_pairs(results)
    found = [primary_comparison(results, arm, other) for arm, other in pairs]
    return dict(zip(pairs, holm([None if pair is None else pair.p_value for pair in found]), strict=True))


def cost_needed(results: StudyResults, arm: str, share: float, cost: str = MINUTES) -> dict[int, float | None]:
    """By seed, cost until ``share`` of the fully supervised mAP; None where it is not reached."""
    return {
        seed: cost_to_reach(curve, share * results.full_map[seed])
        for seed, curve in results.arms[arm].curves_by_cost[cost].items()
        if seed in results.full_map
    }


def mean_by_round(arm: ArmResult, column: str) -> list[float | None]:
    """Mean over seeds of one column, by round; None where no seed has a figure."""
    rounds = sorted({row["round"] for row in arm.rows})
    found = [[row[column] for row in arm.rows if row["round"] == number] for number in rounds]
    known = [[value for value in values if value is not None] for values in found]
    return [fmean(values) if values else None for values in known]


def summary(results: StudyResults) -> dict[str, Any]:
    """``summary.json``."""
    config = results.config
    adjusted = adjusted_p_values(results)
    return {
        "study": config.name,
        "seeds": config.seeds,
        "rounds": config.rounds,
        "model": config.model,
        "trainings_per_point": config.trainings_per_point,
        "settings": config.settings,
        "arms_added": config.added,
        "stopped": results.failures,
        "code_sha256": sorted({row["code_sha256"] for arm in results.arms.values() for row in arm.rows}),
        "full_map": {str(seed): value for seed, value in results.full_map.items()},
        "arms": {name: _arm_summary(results, name) for name in results.arms},
        "comparisons": [_pair_summary(results, pair, adjusted) for pair in adjusted],
    }


def _arm_summary(results: StudyResults, name: str) -> dict[str, Any]:
    arm = results.arms[name]
    needed = {f"{share:.2f}": cost_needed(results, name, share) for share in TARGETS} if results.full_map else {}
    columns = ("minutes", "boxes", "num_labeled", "map", "teacher_map", "spearman_dwa", "spearman_equal")
    return {
        "settings": arm.settings,
        "seeds_complete": list(arm.curves),
        "area": area(arm),
        "final_map": final_map(arm),
        "minutes_needed": {
            share: {
                "by_seed": {str(seed): value for seed, value in by_seed.items()},
                "median": _median(by_seed.values()),
            }
            for share, by_seed in needed.items()
        },
        "by_round": {column: mean_by_round(arm, column) for column in columns},
        "seconds": sum(row["seconds"] for row in arm.rows),
    }


def _median(values: Any) -> float | None:
    """Only where every seed reached it: a median over the lucky ones would flatter."""
    known = list(values)
    return median(known) if known and None not in known else None


def _pair_summary(
    results: StudyResults, pair: tuple[str, str], adjusted: Mapping[tuple[str, str], float | None]
) -> dict[str, Any]:
    document: dict[str, Any] = {"arm": pair[0], "reference": pair[1], "adjusted_p": adjusted[pair]}
    primary = primary_comparison(results, *pair)
    if primary is not None:
        document["verdict"] = primary.corrected_verdict(adjusted[pair], len(adjusted))
    for cost in COST_COLUMNS:
        found = comparisons(results, *pair, cost)
        if found is not None:
            document[f"equal_{cost}"] = dict(zip(("area", "final_map"), map(asdict, found), strict=True))
    return document
