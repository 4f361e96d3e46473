import re
from pathlib import Path
from typing import Any

import pytest

from tasks.study.plan import StudyConfig
from tasks.study.plot import write_plots
from tasks.study.report import comparison_tables, readme
from tasks.study.results import POOL_MEASURES, StudyResults, collect_results, summary

LABELS = (10, 20, 30)


def make_config(**changes: Any) -> StudyConfig:
    content: dict[str, Any] = {
        "name": "made-up",
        "source": {"kind": "demo"},
        "seeds": [1, 2, 3],
        "rounds": 2,
        "seed_labels": 10,
        "calibration_images": 0,
        "arms": {"random": ["select.strategy=random"], "equal": ["dwa.mode=equal"], "better": [], "same": []},
    }
    return StudyConfig.model_validate({**content, **changes})


def result_row(seed: int, arm: str, number: int, teacher_map: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "arm": arm,
        "round": number,
        "num_labeled": LABELS[number],
        "teacher_map": teacher_map,
        "spearman_dwa": 0.4 if arm == "better" and number else None,
        "spearman_equal": 0.2,
        **{f"pool_spearman_{name}": 0.1 for name in POOL_MEASURES},
        "seconds": 5.0,
    }


def synthetic_results(config: StudyConfig, *, full: dict[int, float] | None = None) -> StudyResults:
    """``better`` is 4 points above the others in every round and seed but the first round."""
    rows = [
        result_row(
            seed, arm, number, 20.0 + seed + 10 * number + (4.0 + 0.1 * seed if arm == "better" and number else 0.0)
        )
        for seed in config.seeds
        for arm in config.arms
        for number in range(3)
    ]
    return collect_results(config, rows, full or {}, [])


def test_the_summary_holds_the_written_out_figures() -> None:
    found = summary(synthetic_results(make_config(), full={1: 40.0, 2: 40.0, 3: 40.0}))
    # random, seed 1: 21, 31, 41 at 10, 20, 30 labels: mean 31; mean over seeds 32
    assert found["arms"]["random"]["area"] == pytest.approx(32.0)
    assert found["arms"]["random"]["final_map"] == pytest.approx(42.0)
    # 90 % of 40 is 36: seed 1 is there at 25 labels, seed 2 at 24, seed 3 at 23
    assert found["arms"]["random"]["labels_needed"]["0.90"]["median"] == pytest.approx(24.0)
    pair = next(c for c in found["comparisons"] if (c["arm"], c["reference"]) == ("better", "random"))
    assert pair["final_map"]["differences"] == pytest.approx((4.1, 4.2, 4.3))
    assert pair["final_map"]["verdict"] == "above"
    # trapezoid of 0, d, d over 20 labels is 3/4 d
    assert pair["area"]["differences"] == pytest.approx((3.075, 3.15, 3.225))


def test_the_reading_says_what_is_and_what_is_not_to_be_told_apart() -> None:
    words = readme(synthetic_results(make_config()))
    assert re.search(
        r"`better` against `random`: over all rounds \*\*above\*\* \(\+3\.15, \[\+3\.0\d, \+3\.2\d\]", words
    )
    assert "`same` against `random`: over all rounds identical; at the end identical." in words
    assert "`same` against `equal`" not in words  # `equal` is `random` once more
    assert "once in 4 comparisons" in words
    assert "`better`: on held-out pairs from round 2 on" in words
    assert "is 0.40, above equal weights' 0.20 (mean of 3 rounds)" in words
    assert "Labels needed" not in words
    assert "`random` against" not in words
    assert words.count("`equal` against") == 1
    words = readme(synthetic_results(make_config(baselines=["better"])))
    assert "`same` against `better`: over all rounds **below**" in words
    assert words.count("against `equal`") == 0


def test_an_interval_with_zero_in_it_is_not_distinguishable() -> None:
    study = make_config()
    results = synthetic_results(study)
    shaken = [{**r, "teacher_map": r["teacher_map"] + (3 - 2 * r["seed"])} for r in results.arms["same"].rows]
    others = [r for name, arm in results.arms.items() if name != "same" for r in arm.rows]
    words = readme(collect_results(study, [*others, *shaken], {}, []))
    assert re.search(
        r"`same` against `random`: over all rounds not distinguishable \(-1\.00, \[-3\.00, \+1\.00\]\)", words
    )


def test_without_rounds_arms_differ_in_how_they_learn() -> None:
    study = make_config(rounds=0)
    rows = [
        result_row(seed, arm, 0, 20.0 + seed + (2.0 if arm == "better" else 0.0))
        for seed in (1, 2, 3)
        for arm in study.arms
    ]
    words = readme(collect_results(study, rows, {}, []))
    assert "3 paired seeds, no round after the seed labels." in words
    assert "- `better` against `random`: **above** (+2.00, [+2.00, +2.00]; t [+2.00, +2.00])." in words
    assert "| better | random | last | +2.00 |" in words
    assert "| better | random | mean over labels" not in words


def test_few_seeds_are_said_to_be_few() -> None:
    assert "Seeds are 2, fewer than the 3 a claim needs" in readme(synthetic_results(make_config(seeds=[1, 2])))
    assert "One seed has no interval" in readme(synthetic_results(make_config(seeds=[1])))


def test_unfinished_seeds_take_no_part_and_are_named() -> None:
    study = make_config()
    results = synthetic_results(study)
    rows = [r for arm in results.arms.values() for r in arm.rows]
    partial = [r for r in rows if not (r["arm"] == "better" and r["seed"] == 3 and r["round"] == 2)]
    cut = collect_results(study, partial, {}, ["better, seed 3, round 2: loss ratio is 30."])
    assert list(cut.arms["better"].curves) == [1, 2]
    words = readme(cut)
    assert "**Not finished**: seeds complete are, of 3: better 2." in words
    assert "**Stopped**: better, seed 3, round 2: loss ratio is 30." in words


def test_labels_needed_are_counted_only_where_they_were_reached() -> None:
    words = readme(synthetic_results(make_config(), full={1: 40.0, 2: 40.0, 3: 60.0}))
    assert "| random | reached in 2 of 3 seeds | reached in 2 of 3 seeds |" in words


def test_a_study_that_has_just_begun_can_be_read_and_drawn(tmp_path: Path) -> None:
    nothing = collect_results(make_config(), [], {}, [])
    assert "have no seed in common yet" in readme(nothing)
    assert "| random | 0 |" in comparison_tables(nothing)
    assert summary(nothing)["arms"]["random"]["area"] is None
    write_plots(nothing, tmp_path)
    assert (tmp_path / "plot.svg").stat().st_size > 0


def test_the_plot_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_plots(synthetic_results(make_config(), full={1: 50.0}), tmp_path / folder)
    first = (tmp_path / "a" / "plot.svg").read_bytes()
    assert first == (tmp_path / "b" / "plot.svg").read_bytes()
    assert all(f">{name}<".encode() in first for name in ("random", "equal", "better", "all labels"))
    assert (tmp_path / "a" / "plot.png").read_bytes().startswith(b"\x89PNG")
