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
    labels_to_reach,
    mean_value,
)

POOL_MEASURES = ("uncertainty", "equal", "confidence", "entropy", "overlap")
RESULTS = pa.schema(
    [
        ("seed", pa.int64()),
        ("arm", pa.string()),
        ("round", pa.int32()),
        ("num_labeled", pa.int32()),
        ("boxes", pa.int32()),
        ("teacher_map", pa.float64()),  # percent
        ("teacher_ap50", pa.float64()),
        ("student_map", pa.float64()),
        ("student_ap50", pa.float64()),
        ("acquisition_weights", pa.string()),
        ("spearman_dwa", pa.float64()),  # on held-out pairs
        ("spearman_equal", pa.float64()),
        *[(f"pool_spearman_{name}", pa.float64()) for name in POOL_MEASURES],  # over the whole unlabeled pool
        ("pool_images", pa.int32()),
        ("seconds", pa.float64()),  # of all stages, as this arm spent them
        ("train_seconds", pa.float64()),  # of the training behind it, whichever arm's it was
        ("cached_stages", pa.int32()),  # stages taken from another arm, or found unchanged
    ]
)
TARGETS = (0.90, 0.95)
_BOOTSTRAP_SEED = 0
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """One arm over the seeds in which it is complete."""

    settings: list[str]
    curves: dict[int, Curve]
    """By seed."""
    rows: list[Row]
    """All its rows, unfinished seeds too."""


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
        rows: of ``results.parquet``.
        full_map: percent, by seed.
        failures: sentences on arms that did not get to the end.
        bootstrap_maps: by seed, arm and round: teacher mAP on bootstrap samples of the validation images, the same
            samples for all arms.
    """
    arms = {}
    for name, settings in config.arms.items():
        own = sorted((row for row in rows if row["arm"] == name), key=lambda row: (row["seed"], row["round"]))
        curves = {}
        for seed in config.seeds:
            points = [row for row in own if row["seed"] == seed]
            if len(points) == config.rounds + 1:
                curves[seed] = _curve(
                    points, [(bootstrap_maps or {}).get((seed, name, row["round"]), ()) for row in points]
                )
        arms[name] = ArmResult(list(settings), curves, list(own))
    return StudyResults(config, arms, dict(full_map), list(failures))


def _curve(points: Sequence[Row], bootstrap_maps: Sequence[Sequence[float]]) -> Curve:
    """Labels and mAP by round; the draws only where every round has them."""
    labels, values = (tuple(float(row[column]) for row in points) for column in ("num_labeled", "teacher_map"))
    return Curve(labels, values, tuple(zip(*bootstrap_maps, strict=True)) if all(bootstrap_maps) else ())


def area(arm: ArmResult) -> float | None:
    """Mean height of the arm's curves, each over its own range, mean over seeds."""
    means = [mean_value(curve, curve.labels[0], curve.labels[-1]) for curve in arm.curves.values()]
    return fmean(means) if means else None


def final_map(arm: ArmResult) -> float | None:
    """Last mAP, mean over seeds."""
    return fmean(curve.values[-1] for curve in arm.curves.values()) if arm.curves else None


def comparisons(results: StudyResults, arm: str, baseline: str) -> tuple[Comparison, Comparison] | None:
    """Area and final mAP of ``arm`` minus ``baseline``, over the seeds both finished; None without any."""
    ours, theirs = results.arms[arm].curves, results.arms[baseline].curves
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mine, other = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    return compare_area(mine, other, seed=_BOOTSTRAP_SEED), compare_final(mine, other, seed=_BOOTSTRAP_SEED)


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


def labels_needed(results: StudyResults, arm: str, share: float) -> dict[int, float | None]:
    """By seed, labels until ``share`` of the fully supervised mAP; None where it is not reached."""
    curves = results.arms[arm].curves
    return {
        seed: labels_to_reach(curve, share * results.full_map[seed])
        for seed, curve in curves.items()
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
    return {
        "study": config.name,
        "seeds": config.seeds,
        "rounds": config.rounds,
        "settings": config.settings,
        "arms_added": config.added,
        "stopped": results.failures,
        "full_map": {str(seed): value for seed, value in results.full_map.items()},
        "arms": {name: _arm_summary(results, name) for name in results.arms},
        "comparisons": [_pair_summary(results, arm, other) for arm, other in compared_pairs(results)],
    }


def _arm_summary(results: StudyResults, name: str) -> dict[str, Any]:
    arm = results.arms[name]
    needed = {f"{share:.2f}": labels_needed(results, name, share) for share in TARGETS} if results.full_map else {}
    columns = ("num_labeled", "teacher_map", "spearman_dwa", "spearman_equal")
    pool = [f"pool_spearman_{measure}" for measure in POOL_MEASURES]
    return {
        "settings": arm.settings,
        "seeds_complete": list(arm.curves),
        "area": area(arm),
        "final_map": final_map(arm),
        "labels_needed": {
            share: {
                "by_seed": {str(seed): value for seed, value in by_seed.items()},
                "median": _median(by_seed.values()),
            }
            for share, by_seed in needed.items()
        },
        "by_round": {column: mean_by_round(arm, column) for column in (*columns, *pool)},
        "seconds": sum(row["seconds"] for row in arm.rows),
    }


def _median(values: Any) -> float | None:
    """Only where every seed reached it: a median over the lucky ones would flatter."""
    known = list(values)
    return median(known) if known and None not in known else None


def _pair_summary(results: StudyResults, arm: str, baseline: str) -> dict[str, Any]:
    found = comparisons(results, arm, baseline)
    document: dict[str, Any] = {"arm": arm, "reference": baseline}
    if found is not None:
        for measure, comparison in zip(("area", "final_map"), found, strict=True):
            document[measure] = {**asdict(comparison), "verdict": comparison.verdict}
    return document
