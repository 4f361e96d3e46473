"""A study in words and tables: ``table.md`` and ``README.md``, every sentence made from its numbers."""

from collections.abc import Iterable, Sequence
from statistics import median

from tasks.study.plan import ENOUGH_SEEDS
from tasks.study.results import (
    TARGETS,
    StudyResults,
    area,
    comparisons,
    final,
    labels_needed,
    mean_by_round,
    pairs_compared,
)
from tasks.study.statistics import Comparison, Interval

_NONE = "–"
_POOL = (("used", "U as used"), ("equal", "equal weights"), ("confidence", "confidence"), ("entropy", "entropy"))


def table(results: StudyResults) -> str:
    """``table.md``: teacher mAP by labels, area and last mAP of each arm, then all comparisons."""
    return "\n\n".join([_arms_table(results), _comparison_table(results)]) + "\n"


def reading(results: StudyResults) -> str:
    """``README.md``: what the study shows and what it does not."""
    plan = results.plan
    parts = [
        f"# Study {plan.name}",
        "Written by `gleaner study` from `results.parquet`; do not edit.",
        _what_was_done(results),
        "![teacher mAP against labels](plot.svg)",
        _arms_table(results),
        "## What may be claimed",
        _honesty(results),
        "\n".join(f"- {sentence}" for sentence in _claims(results)) or "No arm is complete yet.",
        _comparison_table(results),
    ]
    if results.full_map:
        parts += ["## Labels needed", _labels_table(results)]
    parts += ["## Does the score find the mistakes?", _correlation_words(results), _correlation_table(results)]
    parts += ["## Arms", _settings(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_was_done(results: StudyResults) -> str:
    plan = results.plan
    rounds = _count(plan.rounds, "round") if plan.rounds else "no round"
    lines = [
        f"{len(plan.arms)} arms, {_count(len(plan.seeds), 'paired seed')}, {rounds} after the seed labels. With one "
        "seed all arms share seed labels, calibration and validation images."
    ]
    if plan.added:
        lines.append(f"Added, because no study may leave them out: {', '.join(plan.added)}.")
    short = [f"{name} {len(arm.curves)}" for name, arm in results.arms.items() if len(arm.curves) < len(plan.seeds)]
    if short:
        lines.append(f"**Not finished**: seeds complete are, of {len(plan.seeds)}: {', '.join(short)}.")
    lines += [f"**Stopped**: {sentence}" for sentence in results.stopped]
    return " ".join(lines)


def _honesty(results: StudyResults) -> str:
    seeds = len(results.plan.seeds)
    if seeds == 1:
        return "**One seed has no interval: nothing can be claimed from this study.**"
    chance = 2 ** (seeds - 1)
    drawn = all(curve.drawn for arm in results.arms.values() for curve in arm.curves.values())
    images = ", and of the validation images within each" if drawn else ""
    lines = [
        "Differences are paired by seed, in percentage points of mAP, with a 95 % interval from 10,000 bootstrap "
        f"resamples of the seeds{images}. With {seeds} seeds an interval over the seeds excludes 0 by chance alone at "
        f"least once in {chance} comparisons (whenever all seeds fall on one side), so a Student t interval stands "
        "beside it. No correction is made for the number of comparisons."
    ]
    if seeds < ENOUGH_SEEDS:
        lines.insert(0, f"**Seeds are {seeds}, fewer than the {ENOUGH_SEEDS} a claim needs.**")
    return " ".join(lines)


def _claims(results: StudyResults) -> Iterable[str]:
    for arm, reference in pairs_compared(results):
        found = comparisons(results, arm, reference)
        if found is None:
            yield f"`{arm}` and `{reference}` have no seed in common yet."
            continue
        over, last = found
        if not results.plan.rounds:
            yield f"`{arm}` against `{reference}`: {_in_words(last, arm, reference)}."
            continue
        yield (
            f"`{arm}` against `{reference}`: over all rounds {_in_words(over, arm, reference)}; "
            f"at the end {_in_words(last, arm, reference)}."
        )


def _in_words(comparison: Comparison, arm: str, reference: str) -> str:
    if len(set(comparison.differences)) == 1 and comparison.mean == 0:
        return "identical"
    figures = f"{comparison.mean:+.2f}, {_interval(comparison.interval)}"
    if comparison.verdict.startswith("not"):
        return f"{comparison.verdict} ({figures})"
    return f"**{comparison.verdict}** ({figures}; t {_interval(comparison.t_interval)})"


def _arms_table(results: StudyResults) -> str:
    rounds = range(results.plan.rounds + 1)
    head = ["arm", "seeds", *(f"round {number}" for number in rounds), "mean over labels", "last"]
    rows = []
    for name, arm in results.arms.items():
        maps = mean_by_round(arm, "teacher_map")
        labels = mean_by_round(arm, "labels")
        cells = [
            f"{_number(maps[n], 1)} ({labels[n]:.0f})" if n < len(maps) and labels[n] is not None else _NONE
            for n in rounds
        ]
        rows.append([name, str(len(arm.curves)), *cells, _number(area(arm), 2), _number(final(arm), 2)])
    return _markdown(head, rows) + "\n\nTeacher mAP in percent, mean over seeds; images labeled in brackets."


def _comparison_table(results: StudyResults) -> str:
    head = ["arm", "minus", "measure", "difference", "bootstrap 95 %", "t 95 %", "verdict"]
    skipped = 0 if results.plan.rounds else 1  # a single round is its own mean
    rows = []
    for arm, reference in pairs_compared(results):
        measured = zip(("mean over labels", "last"), comparisons(results, arm, reference) or (), strict=False)
        for measure, found in list(measured)[skipped:]:
            intervals = [_interval(found.interval), _interval(found.t_interval)]
            rows.append([arm, reference, measure, f"{found.mean:+.2f}", *intervals, found.verdict])
    return _markdown(head, rows) if rows else ""


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
                cells.append(f"reached in {len(known)} of {_count(len(needed), 'seed')}")
        rows.append([name, *cells])
    return f"Teacher mAP with all labels: {reached}. Labels until an arm's curve gets there:\n\n{_markdown(head, rows)}"


def _correlation_words(results: StudyResults) -> str:
    """METHOD section 3's question, answered on held-out pairs from round 2 on."""
    sentences = []
    for name, arm in results.arms.items():
        later = [row for row in arm.rows if row["round"] >= 2 and row["spearman_dwa"] is not None]
        both = [(row["spearman_dwa"], row["spearman_equal"]) for row in later if row["spearman_equal"] is not None]
        if both:
            dwa, equal = (sum(values) / len(both) for values in zip(*both, strict=True))
            above = "above" if dwa > equal else "not above"
            sentences.append(
                f"`{name}`: on held-out pairs from round 2 on, DWA's rank correlation with the realised loss is "
                f"{dwa:.2f}, {above} equal weights' {equal:.2f} (mean of {_count(len(both), 'round')})."
            )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _correlation_table(results: StudyResults) -> str:
    head = ["arm", "round", "held-out: DWA", "held-out: equal", *(f"pool: {title}" for _, title in _POOL)]
    columns = ["spearman_dwa", "spearman_equal", *(f"pool_spearman_{key}" for key, _ in _POOL)]
    rows = []
    for name, arm in results.arms.items():
        series = [mean_by_round(arm, column) for column in columns]
        for number, values in enumerate(zip(*series, strict=True)):
            rows.append([name, str(number), *(_number(value, 2) for value in values)])
    note = (
        "Spearman correlation with the realised loss, mean over seeds: held-out pairs as the campaign knows them, "
        "and the whole unlabeled pool as only the oracle knows it."
    )
    return f"{_markdown(head, rows)}\n\n{note}" if rows else ""


def _settings(results: StudyResults) -> str:
    common = ", ".join(f"`{setting}`" for setting in results.plan.settings) or "those of Gleaner"
    rows = [[name, " ".join(f"`{setting}`" for setting in arm.settings)] for name, arm in results.arms.items()]
    return f"Common settings: {common}.\n\n{_markdown(['arm', 'its own settings'], rows)}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _interval(interval: Interval | None) -> str:
    return "no interval" if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
