"""A study in words and tables: ``table.md`` and ``README.md``, every sentence made from its numbers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tasks.runtime.formatting import count
from tasks.study.pool_ranking import RuleRanking, best_single_metric, compare_rules, rank_rules, standard_error
from tasks.study.results import (
    COST_COLUMNS,
    TARGETS,
    StudyResults,
    adjusted_p_values,
    area,
    compared_pairs,
    comparisons,
    cost_needed,
    final_map,
    mean_by_round,
    primary_comparison,
)
from tasks.study.statistics import MIN_SEEDS, Comparison, Interval

_MISSING = "–"
_MODEL_TEXT = {
    "best": "the better of teacher and student",
    "teacher": "the teacher",
    "student": "the student",
}


def comparison_tables(results: StudyResults) -> str:
    """``table.md``: mAP by round and cost, area and last mAP of each arm, then all comparisons."""
    return "\n\n".join([_arms_table(results), _comparison_table(results)]) + "\n"


def readme(results: StudyResults, pool_ranking: Sequence[Mapping[str, Any]] = ()) -> str:
    """``README.md``: what the study shows and what it does not.

    Args:
        results: of the study.
        pool_ranking: rows of schema POOL_RANKING.
    """
    config = results.config
    parts = [
        f"# Study {config.name}",
        "Written by `gleaner study` from the files in `parts/`; do not edit.",
        _setup_text(results),
        "![mAP against minutes, boxes and images](plot.svg)",
        _arms_table(results),
    ]
    if config.question == "selection":
        parts += [
            "## What may be claimed",
            _caveats(results),
            "\n".join(f"- {sentence}" for sentence in _claims(results)) or "No arm is complete yet.",
            _comparison_table(results),
        ]
    if results.full_map:
        parts += ["## Minutes needed", _needed_table(results)]
    parts += ["## Does the score find the mistakes?", _correlation_text(results), _correlation_table(results)]
    parts += [_pool_ranking_text(results, pool_ranking)]
    parts += ["## Arms", _settings_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup_text(results: StudyResults) -> str:
    config = results.config
    rounds = count(config.rounds, "round") if config.rounds else "no round"
    lines = [
        f"{len(config.arms)} arms, {count(len(config.seeds), 'paired seed')}, {rounds} after the seed labels. "
        "With one seed all arms share seed labels, calibration and validation images. "
        f"mAP is that of {_MODEL_TEXT[config.model]} on the validation images"
        f"{_trainings_text(config.trainings_per_point)}."
    ]
    if not isinstance(config.seed_size, int):
        lines.append(f"Seed labels: {config.seed_size}.")
    if config.added:
        lines.append(f"Added, because no study may leave them out: {', '.join(config.added)}.")
    incomplete = [
        f"{name} {len(arm.curves)}" for name, arm in results.arms.items() if len(arm.curves) < len(config.seeds)
    ]
    if incomplete:
        lines.append(f"**Not finished**: seeds complete are, of {len(config.seeds)}: {', '.join(incomplete)}.")
    lines += [f"**Stopped**: {sentence}" for sentence in results.failures]
    lines += [*_code_text(results), *_params_text(results)]
    return " ".join(lines)


def _trainings_text(trainings: int) -> str:
    return "" if trainings == 1 else f", the mean of {trainings} trainings on the same labels"


def _code_text(results: StudyResults) -> list[str]:
    """Say which seeds were run by which code, where it changed between the pieces of a study."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for arm in results.arms.values():
        for row in arm.rows:
            seeds[row["code_sha256"]].add(row["seed"])
    if len(seeds) < 2:
        return []
    versions = "; ".join(f"{code[:8]}: {', '.join(map(str, sorted(found)))}" for code, found in sorted(seeds.items()))
    mixed = {seed for found in seeds.values() for seed in found if sum(seed in other for other in seeds.values()) > 1}
    text = f"The stages changed while the study ran; seeds by digest of their code: {versions}."
    if mixed:
        text += f" **Arms of seeds {', '.join(map(str, sorted(mixed)))} were run by different code.**"
    return [text]


def _params_text(results: StudyResults) -> Iterable[str]:
    """Name arms whose seeds had other parameters: the file is the same, but the defaults of params.yaml changed."""
    for name, arm in results.arms.items():
        seeds: dict[str, set[int]] = defaultdict(set)
        for row in arm.rows:
            seeds[row["params_sha256"]].add(row["seed"])
        if len(seeds) > 1:
            groups = "; ".join(", ".join(map(str, sorted(found))) for _, found in sorted(seeds.items()))
            yield f"**Seeds of `{name}` had different defaults of params.yaml: {groups}.**"


def _caveats(results: StudyResults) -> str:
    seeds = len(results.config.seeds)
    if seeds == 1:
        return "**One seed has no interval: nothing can be claimed from this study.**"
    curves = [curve for arm in results.arms.values() for curve in arm.curves.values()]
    has_draws = all(curve.resampled_values for curve in curves)
    images = ", and of the validation images, which all seeds share," if has_draws else ""
    lines = [
        "Arms are compared at equal minutes of annotation, on the line between rounds, over the minutes that both of a "
        "pair have spent; boxes and images stand beside that. Differences are paired by seed, in percentage points of "
        f"mAP, with a 95 % interval from 10,000 bootstrap resamples of the seeds{images} and Student's t interval. A "
        "claim rests on the mean over equal minutes alone: both intervals exclude 0, and so does the t test after "
        f"Holm's correction for {count(len(compared_pairs(results)), 'comparison')}."
    ]
    if seeds < MIN_SEEDS:
        lines.insert(0, f"**Seeds are {seeds}, fewer than the {MIN_SEEDS} a claim needs.**")
    return " ".join(lines)


def _claims(results: StudyResults) -> Iterable[str]:
    adjusted = adjusted_p_values(results)
    for (arm, baseline), p in adjusted.items():
        primary = primary_comparison(results, arm, baseline)
        if primary is None:
            yield f"`{arm}` and `{baseline}` have no seed in common yet."
            continue
        verdict = primary.corrected_verdict(p, len(adjusted))
        if not results.config.rounds:
            yield f"`{arm}` against `{baseline}`: {_comparison_text(primary, verdict, p)}."
            continue
        at_the_end = "; ".join(
            f"{_short_text(found[1])} at equal {cost}"
            for cost in COST_COLUMNS
            if (found := comparisons(results, arm, baseline, cost)) is not None
        )
        yield (
            f"`{arm}` against `{baseline}`, over equal minutes: {_comparison_text(primary, verdict, p)}; "
            f"at the end {at_the_end}."
        )


def _comparison_text(comparison: Comparison, verdict: str, adjusted_p: float | None) -> str:
    if _is_identical(comparison):
        return "identical"
    if comparison.interval is None:
        return f"{verdict} ({comparison.mean:+.2f})"
    estimate = (
        f"{comparison.mean:+.2f}, {_format_interval(comparison.interval)}, "
        f"t {_format_interval(comparison.t_interval)}, adjusted p {_format_number(adjusted_p, 3)}"
    )
    return f"**{verdict}** ({estimate})" if verdict in ("above", "below") else f"{verdict} ({estimate})"


def _short_text(comparison: Comparison) -> str:
    if _is_identical(comparison):
        return "identical"
    return f"{comparison.mean:+.2f} t {_format_interval(comparison.t_interval)}"


def _is_identical(comparison: Comparison) -> bool:
    return len(set(comparison.differences)) == 1 and comparison.mean == 0


def _arms_table(results: StudyResults) -> str:
    rounds = range(results.config.rounds + 1)
    head = ["arm", "seeds", *(f"round {number}" for number in rounds), "mean over minutes", "last"]
    rows = []
    for name, arm in results.arms.items():
        maps, minutes, boxes, images = (
            mean_by_round(arm, column) for column in ("map", "minutes", "boxes", "num_labeled")
        )
        cells = [
            f"{_format_number(maps[n], 1)} ({minutes[n]:.0f}, {boxes[n]:.0f}, {images[n]:.0f})"
            if n < len(maps) and minutes[n] is not None
            else _MISSING
            for n in rounds
        ]
        rows.append(
            [name, str(len(arm.curves)), *cells, _format_number(area(arm), 2), _format_number(final_map(arm), 2)]
        )
    note = "mAP in percent, mean over seeds; in brackets minutes of annotation after the seed labels, boxes and images."
    return f"{_markdown_table(head, rows)}\n\n{note}"


def _comparison_table(results: StudyResults) -> str:
    head = ["arm", "minus", "measure", "difference", "bootstrap 95 %", "t 95 %", "p", "adjusted p", "verdict"]
    adjusted = adjusted_p_values(results)
    rows = []
    for (arm, baseline), p in adjusted.items():
        for cost in COST_COLUMNS:
            found = comparisons(results, arm, baseline, cost) or ()
            measured = list(zip((f"mean over equal {cost}", f"last at equal {cost}"), found, strict=False))
            if not results.config.rounds:  # a single round is its own mean, and its cost is the same for all
                measured = [("last", found[1])] if found and cost == next(iter(COST_COLUMNS)) else []
            for measure, comparison in measured:
                is_primary = measure in ("mean over equal minutes", "last")
                verdict = comparison.corrected_verdict(p, len(adjusted)) if is_primary else _MISSING
                intervals = [_format_interval(comparison.interval), _format_interval(comparison.t_interval)]
                p_values = [_format_number(comparison.p_value, 3), _format_number(p, 3) if is_primary else _MISSING]
                rows.append([arm, baseline, measure, f"{comparison.mean:+.2f}", *intervals, *p_values, verdict])
    return _markdown_table(head, rows) if rows else ""


def _needed_table(results: StudyResults) -> str:
    reached = ", ".join(f"seed {seed}: {value:.1f}" for seed, value in results.full_map.items())
    head = ["arm", *(f"{share:.0%} of full" for share in TARGETS)]
    rows = []
    for name in results.arms:
        cells = []
        for share in TARGETS:
            needed = list(cost_needed(results, name, share).values())
            known = [value for value in needed if value is not None]
            if known and len(known) == len(needed):
                cells.append(f"{median(known):.0f} (median)")
            else:
                cells.append(f"reached in {len(known)} of {count(len(needed), 'seed')}")
        rows.append([name, *cells])
    table = _markdown_table(head, rows)
    return f"mAP with all labels: {reached}. Minutes until an arm's curve gets there:\n\n{table}"


def _correlation_text(results: StudyResults) -> str:
    """Answer the question of docs/method.md#dwa on held-out pairs from round 2 on."""
    sentences = []
    for name, arm in results.arms.items():
        measured_rows = [row for row in arm.rows if row["round"] >= 2 and row["spearman_dwa"] is not None]
        both = [
            (row["spearman_dwa"], row["spearman_equal"]) for row in measured_rows if row["spearman_equal"] is not None
        ]
        if both:
            dwa, equal = (sum(values) / len(both) for values in zip(*both, strict=True))
            above = "above" if dwa > equal else "not above"
            sentences.append(
                f"`{name}`: on held-out pairs from round 2 on, DWA's rank correlation with the realized loss is "
                f"{dwa:.2f}, {above} equal weights' {equal:.2f} (mean of {count(len(both), 'round')})."
            )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _correlation_table(results: StudyResults) -> str:
    head = ["arm", "round", "held-out: DWA", "held-out: equal"]
    rows = []
    for name, arm in results.arms.items():
        series = [mean_by_round(arm, column) for column in ("spearman_dwa", "spearman_equal")]
        for number, values in enumerate(zip(*series, strict=True)):
            rows.append([name, str(number), *(_format_number(value, 2) for value in values)])
    note = "Spearman correlation with the realized loss on held-out pairs, as the campaign knows it; mean over seeds."
    return f"{_markdown_table(head, rows)}\n\n{note}" if rows else ""


def _pool_ranking_text(results: StudyResults, rows: Sequence[Mapping[str, Any]]) -> str:
    """Tables of the whole pool, which only the oracle knows, one per arm."""
    parts = ["### Over the whole pool"]
    for name in results.arms:
        rankings = rank_rules(row for row in rows if row["arm"] == name)
        if not rankings:
            continue
        rounds = sorted({number for ranking in rankings for number in ranking.by_round})
        head = ["rule", *(f"round {number}" for number in rounds), "mean"]
        table = [
            [
                ranking.rule,
                *(_format_number(ranking.by_round.get(number), 3) for number in rounds),
                f"{ranking.mean:.3f}",
            ]
            for ranking in rankings
        ]
        parts += [f"Arm `{name}`:", _markdown_table(head, table), *_learned_text(rankings)]
    if len(parts) == 1:
        return ""
    note = (
        "Spearman correlation with the realized loss over the whole unlabeled pool, as only the oracle knows it; mean "
        "over seeds."
    )
    return "\n\n".join([*parts, note])


def _learned_text(rankings: Sequence[RuleRanking]) -> Iterable[str]:
    best = best_single_metric(rankings)
    for rule in ("learned", "chosen"):
        found = compare_rules(rankings, rule, best) if best is not None else None
        if found is None:
            continue
        error = standard_error(found)
        spread = "one seed has no standard error" if error is None else f"standard error {error:.3f} over seeds"
        yield f"`{rule}` minus the best single metric, `{best}`: {found.mean:+.3f}, {spread}."


def _settings_table(results: StudyResults) -> str:
    common = ", ".join(f"`{setting}`" for setting in results.config.settings) or "those of Gleaner"
    rows = [[name, " ".join(f"`{setting}`" for setting in arm.settings)] for name, arm in results.arms.items()]
    planted = [f"{frac:.0%} in `{name}`" for name, frac in results.config.wrong_classes.items()]
    wrong = f" Boxes of the seed labels with a planted wrong class: {', '.join(planted)}." if planted else ""
    return f"Common settings: {common}.{wrong}\n\n{_markdown_table(['arm', 'its own settings'], rows)}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _format_interval(interval: Interval | None) -> str:
    return "no interval" if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def _format_number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"
