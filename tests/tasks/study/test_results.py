import re
from pathlib import Path
from typing import Any

import pytest

from tasks.study.plan import StudyConfig
from tasks.study.plot import write_plots
from tasks.study.report import comparison_tables, readme
from tasks.study.results import StudyResults, collect_results, comparisons, summary

LABELS = (10, 20, 30)
MINUTES = (0.0, 10.0, 20.0)


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
        "minutes": MINUTES[number],
        "boxes": 5 * LABELS[number],
        "num_labeled": LABELS[number],
        "map": teacher_map,
        "teacher_map": teacher_map,
        "code_sha256": "c0de",
        "params_sha256": "params",
        "spearman_dwa": 0.4 if arm == "better" and number else None,
        "spearman_equal": 0.2,
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
    # 90 % of 40 is 36: seed 1 is there after 15 minutes, seed 2 after 14, seed 3 after 13
    assert found["arms"]["random"]["minutes_needed"]["0.90"]["median"] == pytest.approx(14.0)
    pair = next(c for c in found["comparisons"] if (c["arm"], c["reference"]) == ("better", "random"))
    for cost in ("minutes", "boxes", "images"):
        assert pair[f"equal_{cost}"]["final_map"]["differences"] == pytest.approx((4.1, 4.2, 4.3))
        # trapezoid of 0, d, d over two equal steps is 3/4 d
        assert pair[f"equal_{cost}"]["area"]["differences"] == pytest.approx((3.075, 3.15, 3.225))
    assert pair["verdict"] == "above"
    # three pairs are compared, equal, better and same with random; the smallest p counts three times
    assert pair["adjusted_p"] == pytest.approx(3 * pair["equal_minutes"]["area"]["p_value"])


def test_an_arm_that_costs_more_is_compared_where_the_minutes_are_equal() -> None:
    """Crowded images: 4 points more in each round, at twice the minutes and boxes. On its own curve that is a loss."""
    study = make_config()
    results = synthetic_results(study)
    crowded = [
        {**r, "arm": "better", "minutes": 2 * r["minutes"], "boxes": 2 * r["boxes"] - 50, "map": r["map"] + 4}
        if r["round"]
        else {**r, "arm": "better"}
        for r in results.arms["random"].rows
    ]
    others = [r for name, arm in results.arms.items() if name != "better" for r in arm.rows]
    results = collect_results(study, [*others, *crowded], {}, [])
    area, last = comparisons(results, "better", "random", "minutes") or (None, None)
    assert area is not None
    assert last is not None
    # seed 1: random 21, 31, 41 after 0, 10, 20 minutes; the other 21, 35 after 0, 20: 35 - 41, and 28 - 31
    assert last.differences == pytest.approx((-6.0,) * 3)
    assert area.differences == pytest.approx((-3.0,) * 3)
    at_images = comparisons(results, "better", "random", "images")
    assert at_images is not None
    assert at_images[1].differences == pytest.approx((4.0,) * 3)
    words = readme(results)
    assert "`better` against `random`, over equal minutes: **below** (-3.00" in words
    assert "at the end -6.00 t [-6.00, -6.00] at equal minutes" in words
    assert "+4.00 t [+4.00, +4.00] at equal images" in words


def test_the_reading_says_what_is_and_what_is_not_to_be_told_apart() -> None:
    words = readme(synthetic_results(make_config()))
    assert re.search(
        r"`better` against `random`, over equal minutes: \*\*above\*\* \(\+3\.15, \[\+3\.0\d, \+3\.2\d\], t ", words
    )
    assert "`same` against `random`, over equal minutes: identical; at the end identical at equal minutes" in words
    assert "`same` against `equal`" not in words  # `equal` is `random` once more
    assert "Holm's correction for 3 comparisons" in words
    assert "`better`: on held-out pairs from round 2 on" in words
    assert "is 0.40, above equal weights' 0.20 (mean of 3 rounds)" in words
    assert "Minutes needed" not in words
    assert "`random` against" not in words
    assert words.count("`equal` against") == 1
    words = readme(synthetic_results(make_config(baselines=["better"])))
    assert "`same` against `better`, over equal minutes: **below**" in words
    assert words.count("against `equal`") == 0


def test_one_of_many_comparisons_has_to_be_surer() -> None:
    """p near 0.03 alone is not enough among five."""
    names = ["lucky", "a", "b", "c"]
    study = make_config(arms={"random": [], "equal": [], **{name: [] for name in names}})
    noise = {"lucky": (1.0, 2.0, 1.7), "a": (3.0, -2.0, 0.5), "b": (-1.0, 2.0, 0.0), "c": (0.5, -0.5, 0.1)}
    rows = [
        result_row(seed, arm, number, 20.0 + 10 * number + (noise.get(arm, (0, 0, 0))[seed - 1] if number else 0))
        for seed in study.seeds
        for arm in study.arms
        for number in range(3)
    ]
    results = collect_results(study, rows, {}, [])
    lucky = next(c for c in summary(results)["comparisons"] if c["arm"] == "lucky")
    assert lucky["equal_minutes"]["area"]["p_value"] < 0.05 < lucky["adjusted_p"]
    assert lucky["verdict"] == "not distinguishable: above alone, but not as one of 5 comparisons"


def test_pieces_of_different_code_are_named() -> None:
    results = synthetic_results(make_config())
    rows = [
        {**r, "code_sha256": "0ther" if r["seed"] == 3 or (r["seed"], r["arm"]) == (2, "better") else "c0de"}
        for arm in results.arms.values()
        for r in arm.rows
    ]
    words = readme(collect_results(make_config(), rows, {}, []))
    assert "seeds by digest of their code: 0ther: 2, 3; c0de: 1, 2." in words
    assert "**Arms of seeds 2 were run by different code.**" in words
    assert "digest of their code" not in readme(results)


def test_an_arm_whose_defaults_changed_is_named() -> None:
    results = synthetic_results(make_config())
    rows = [
        {**r, "params_sha256": "later"} if (r["seed"], r["arm"]) == (3, "better") else r
        for arm in results.arms.values()
        for r in arm.rows
    ]
    words = readme(collect_results(make_config(), rows, {}, []))
    assert "**Seeds of `better` had different defaults of params.yaml: 3; 1, 2.**" in words
    assert "different defaults" not in readme(results)


def test_an_interval_with_zero_in_it_is_not_distinguishable() -> None:
    study = make_config()
    results = synthetic_results(study)
    shaken = [{**r, "map": r["map"] + (3 - 2 * r["seed"])} for r in results.arms["same"].rows]
    others = [r for name, arm in results.arms.items() if name != "same" for r in arm.rows]
    words = readme(collect_results(study, [*others, *shaken], {}, []))
    assert re.search(
        r"`same` against `random`, over equal minutes: not distinguishable \(-1\.00, \[-3\.00, \+1\.00\], t ", words
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
    assert (
        "- `better` against `random`: **above** (+2.00, [+2.00, +2.00], t [+2.00, +2.00], adjusted p 0.000)." in words
    )
    assert "| better | random | last | +2.00 |" in words
    assert "| better | random | mean over" not in words


def test_few_seeds_are_said_to_be_few() -> None:
    words = readme(synthetic_results(make_config(seeds=[1, 2])))
    assert "Seeds are 2, fewer than the 3 a claim needs" in words
    assert "`better` against `random`, over equal minutes: no claim from 2 seeds (+3.11" in words
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


def test_minutes_needed_are_counted_only_where_they_were_reached() -> None:
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


def test_a_study_of_rankings_compares_rules_and_no_map() -> None:
    study = make_config(question="ranking", arms={"random": ["select.strategy=random"]})
    ranking = [
        {"seed": seed, "arm": "random", "round": number, "rule": rule, "spearman": value + 0.01 * seed}
        for seed in (1, 2, 3)
        for number in (0, 1)
        for rule, value in (("learned", 0.5), ("entropy", 0.4), ("confidence", 0.1))
    ]
    words = readme(synthetic_results(study), ranking)
    assert "What may be claimed" not in words
    assert "| rule | round 0 | round 1 | mean |" in words
    assert "| learned | 0.520 | 0.520 | 0.520 |" in words
    assert "`learned` minus the best single metric, `entropy`: +0.100, standard error 0.000 over seeds." in words
