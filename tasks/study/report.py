"""A study in words and tables: ``table.md`` and ``README.md``, every sentence made from its numbers."""

from collections.abc import Iterable, Sequence
from statistics import median

from tasks.runtime.formatting import count
from tasks.study.plan import MIN_SEEDS
from tasks.study.results import (
    TARGETS,
    StudyResults,
    area,
    compared_pairs,
    comparisons,
    final_map,
    labels_needed,
    mean_by_round,
)
from tasks.study.statistics import Comparison, Interval

_MISSING = "–"
_POOL_COLUMNS = (
    ("uncertainty", "U as used"),
    ("equal", "equal weights"),
    ("confidence", "confidence"),
    ("entropy", "entropy"),
)


def comparison_tables(results: StudyResults) -> str:
    """``table.md``: teacher mAP by labels, area and last mAP of each arm, then all comparisons."""
    return "\n\n".join([_arms_table(results), _comparison_table(results)]) + "\n"


def readme(results: StudyResults) -> str:
    """``README.md``: what the study shows and what it does not."""
    config = results.config
    parts = [
        f"# Study {config.name}",
        "Written by `gleaner study` from `results.parquet`; do not edit.",
        _setup_text(results),
        "![teacher mAP against labels](plot.svg)",
        _arms_table(results),
        "## What may be claimed",
        _caveats(results),
        "\n".join(f"- {sentence}" for sentence in _claims(results)) or "No arm is complete yet.",
        _comparison_table(results),
    ]
    if results.full_map:
        parts += ["## Labels needed", _labels_table(results)]
    parts += ["## Does the score find the mistakes?", _correlation_text(results), _correlation_table(results)]
    parts += ["## Arms", _settings_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup_text(results: StudyResults) -> str:
    config = results.config
    rounds = count(config.rounds, "round") if config.rounds else "no round"
    lines = [
        f"{len(config.arms)} arms, {count(len(config.seeds), 'paired seed')}, {rounds} after the seed labels. "
        "With one seed all arms share seed labels, calibration and validation images."
    ]
    if config.added:
        lines.append(f"Added, because no study may leave them out: {', '.join(config.added)}.")
    incomplete = [
        f"{name} {len(arm.curves)}" for name, arm in results.arms.items() if len(arm.curves) < len(config.seeds)
    ]
    if incomplete:
        lines.append(f"**Not finished**: seeds complete are, of {len(config.seeds)}: {', '.join(incomplete)}.")
    lines += [f"**Stopped**: {sentence}" for sentence in results.failures]
    return " ".join(lines)


def _caveats(results: StudyResults) -> str:
    seeds = len(results.config.seeds)
    if seeds == 1:
        return "**One seed has no interval: nothing can be claimed from this study.**"
    chance = 2 ** (seeds - 1)
    has_image_bootstrap = all(curve.resampled_values for arm in results.arms.values() for curve in arm.curves.values())
    images = ", and of the validation images within each" if has_image_bootstrap else ""
    lines = [
        "Differences are paired by seed, in percentage points of mAP, with a 95 % interval from 10,000 bootstrap "
        f"resamples of the seeds{images}. With {seeds} seeds an interval over the seeds excludes 0 by chance alone at "
        f"least once in {chance} comparisons (whenever all seeds fall on one side), so a Student t interval stands "
        "beside it. No correction is made for the number of comparisons."
    ]
    if seeds < MIN_SEEDS:
        lines.insert(0, f"**Seeds are {seeds}, fewer than the {MIN_SEEDS} a claim needs.**")
    return " ".join(lines)


def _claims(results: StudyResults) -> Iterable[str]:
    for arm, baseline in compared_pairs(results):
        pair = comparisons(results, arm, baseline)
        if pair is None:
            yield f"`{arm}` and `{baseline}` have no seed in common yet."
            continue
        over, last = pair
        if not results.config.rounds:
            yield f"`{arm}` against `{baseline}`: {_comparison_text(last, arm, baseline)}."
            continue
        yield (
            f"`{arm}` against `{baseline}`: over all rounds {_comparison_text(over, arm, baseline)}; "
            f"at the end {_comparison_text(last, arm, baseline)}."
        )


def _comparison_text(comparison: Comparison, arm: str, baseline: str) -> str:
    if len(set(comparison.differences)) == 1 and comparison.mean == 0:
        return "identical"
    estimate = f"{comparison.mean:+.2f}, {_format_interval(comparison.interval)}"
    if comparison.verdict.startswith("not"):
        return f"{comparison.verdict} ({estimate})"
    return f"**{comparison.verdict}** ({estimate}; t {_format_interval(comparison.t_interval)})"


def _arms_table(results: StudyResults) -> str:
    rounds = range(results.config.rounds + 1)
    head = ["arm", "seeds", *(f"round {number}" for number in rounds), "mean over labels", "last"]
    rows = []
    for name, arm in results.arms.items():
        maps = mean_by_round(arm, "teacher_map")
        labels = mean_by_round(arm, "num_labeled")
        cells = [
            f"{_format_number(maps[n], 1)} ({labels[n]:.0f})" if n < len(maps) and labels[n] is not None else _MISSING
            for n in rounds
        ]
        rows.append(
            [name, str(len(arm.curves)), *cells, _format_number(area(arm), 2), _format_number(final_map(arm), 2)]
        )
    return _markdown_table(head, rows) + "\n\nTeacher mAP in percent, mean over seeds; images labeled in brackets."


def _comparison_table(results: StudyResults) -> str:
    head = ["arm", "minus", "measure", "difference", "bootstrap 95 %", "t 95 %", "verdict"]
    skipped = 0 if results.config.rounds else 1  # a single round is its own mean
    rows = []
    for arm, baseline in compared_pairs(results):
        measured = zip(("mean over labels", "last"), comparisons(results, arm, baseline) or (), strict=False)
        for measure, found in list(measured)[skipped:]:
            intervals = [_format_interval(found.interval), _format_interval(found.t_interval)]
            rows.append([arm, baseline, measure, f"{found.mean:+.2f}", *intervals, found.verdict])
    return _markdown_table(head, rows) if rows else ""


def _labels_table(results: StudyResults) -> str:
    reached = ", ".join(f"seed {seed}: {value:.1f}" for seed, value in results.full_map.items())
    head = ["arm", *(f"{share:.0%} of full" for share in TARGETS)]
    rows = []
    for name in results.arms:
        cells = []
        for share in TARGETS:
            needed = list(labels_needed(results, name, share).values())
            known = [value for value in needed if value is not None]
            if known and len(known) == len(needed):
                cells.append(f"{median(known):.0f} (median)")
            else:
                cells.append(f"reached in {len(known)} of {count(len(needed), 'seed')}")
        rows.append([name, *cells])
    table = _markdown_table(head, rows)
    return f"Teacher mAP with all labels: {reached}. Labels until an arm's curve gets there:\n\n{table}"


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
    head = ["arm", "round", "held-out: DWA", "held-out: equal", *(f"pool: {title}" for _, title in _POOL_COLUMNS)]
    columns = ["spearman_dwa", "spearman_equal", *(f"pool_spearman_{key}" for key, _ in _POOL_COLUMNS)]
    rows = []
    for name, arm in results.arms.items():
        series = [mean_by_round(arm, column) for column in columns]
        for number, values in enumerate(zip(*series, strict=True)):
            rows.append([name, str(number), *(_format_number(value, 2) for value in values)])
    note = (
        "Spearman correlation with the realized loss, mean over seeds: held-out pairs as the campaign knows them, "
        "and the whole unlabeled pool as only the oracle knows it."
    )
    return f"{_markdown_table(head, rows)}\n\n{note}" if rows else ""


def _settings_table(results: StudyResults) -> str:
    common = ", ".join(f"`{setting}`" for setting in results.config.settings) or "those of Gleaner"
    rows = [[name, " ".join(f"`{setting}`" for setting in arm.settings)] for name, arm in results.arms.items()]
    return f"Common settings: {common}.\n\n{_markdown_table(['arm', 'its own settings'], rows)}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _format_interval(interval: Interval | None) -> str:
    return "no interval" if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def _format_number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"
