"""Sentences and table rows: right numbers, right grammar, nothing claimed that is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.reporting import narrative, tables
from tasks.reporting.history import append_round
from tasks.runtime import formatting

DWA = {
    "mode": "learned",
    "used": "learned",
    "reason": "",
    "num_samples": 40,
    "spearman_dwa": 0.5,
    "spearman_equal": 0.3,
    "best_simple": "entropy",
    "candidates": [
        {"name": "equal", "spearman": 0.3, "standard_error": 0.17},
        {"name": "entropy", "spearman": 0.35, "standard_error": 0.17},
        {"name": "learned", "spearman": 0.5, "standard_error": 0.17, "gain": 0.15, "gain_standard_error": 0.04},
    ],
}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 1, "–"), (float("nan"), 1, "–"), (-0.04, 2, "−0.04"), (1234.5, 0, "1\u202f234"), (0, 1, "0.0")],
)
def test_number(value, digits, text):
    assert formatting.number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.04, "±0.0"), (-0.06, "−0.1"), (2.25, "+2.2"), (0.0, "±0.0")]
)
def test_signed(value, text):
    assert formatting.signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (59.0, "59.0 s"), (214.2, "3 min 34 s"), (7380, "2 h 03 min"), (3599.7, "1 h 00 min")],
)
def test_duration(seconds, text):
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("parts", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_listed(parts, text):
    assert formatting.join_and(parts) == text


EQUAL = {"used": "equal", "spearman_dwa": None, "candidates": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {},
            "better: 0.50 against 0.35 of entropy alone, a lead of +0.15 with a standard error of 0.04, on 40 images.",
        ),
        (
            {"used": "equal"},
            "Equal weights ranked the images. Learned weights do not rank the teacher’s mistakes clearly",
        ),
        ({"used": "-overlap"}, "Low overlap alone ranked the images."),
        (
            EQUAL | {"num_samples": 1},
            "Equal weights ranked the images: 1 image with both detections and human labels is too few",
        ),
        (EQUAL, "For equal weights alone it is 0.30."),
        (EQUAL | {"mode": "entropy"}, "This campaign does not learn its metric weights: dwa.mode is “entropy”"),
    ],
)
def test_verdict_names_what_was_used_and_why(change, said):
    assert said in narrative.dwa_verdict(DWA | change)


def test_caution_is_two_standard_errors_and_silent_without_a_comparison():
    assert "±0.33" in narrative.dwa_caution(DWA)
    unsure = [candidate | {"standard_error": 0.9} for candidate in DWA["candidates"]]
    assert "±1.00" in narrative.dwa_caution(DWA | {"candidates": unsure})
    assert narrative.dwa_caution(DWA | EQUAL) == ""


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("equal", "equal weights"),
        ("entropy", "entropy alone"),
        ("-entropy", "low entropy alone"),
        ("common", "one learned mixture for all images"),
        ("per_image_c=10", "a learned mixture per image, c = 10"),
    ],
)
def test_rules_have_names_that_people_use(rule, text):
    assert narrative.rule_name(rule) == text


def round_entry(number: int, reached: float | None) -> dict:
    return {"round": number, "labels": 10 * (number + 1), "teacher": {"mAP": reached}}


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [(28.5, 35.0, "6.5 mAP points ahead"), (28.5, 30.4, ""), (35.0, 28.5, ""), (None, 35.0, ""), (28.5, None, "")],
)
def test_a_teacher_behind_its_student_is_told(teacher, student, said):
    told = narrative.teacher_lag_warning({"teacher": {"mAP": teacher}, "student": {"mAP": student}})
    assert said in told
    assert bool(told) == bool(said)


LABELED = {"labeled_images": 10, "boxes_per_class": {"cup": 20, "jug": 5, "pan": 0}}


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        ({"cup": 5.9, "jug": 1.4, "pan": 9.0}, ""),
        ({"cup": 6.0, "jug": 1.4, "pan": 0.0}, "draws “cup” 3 times as often"),
        ({"cup": 8.2, "jug": 7.0, "pan": 0.0}, "draws “cup” 4 times and “jug” 14 times as often"),
        ({"cup": 0.0, "jug": 0.0, "pan": 0.0}, ""),
    ],
)
def test_pseudo_boxes_far_more_frequent_than_labels_are_told(drawn, said):
    told = narrative.pseudo_box_warning({"pseudo_boxes_per_image_by_class": drawn}, LABELED)
    assert said in told
    assert bool(told) == bool(said)


def test_headline_without_a_measurement():
    assert (
        narrative.headline([round_entry(0, None)])
        == "Round 0: 10 images labeled, and nothing to measure the teacher on"
    )


@given(st.lists(st.integers(0, 20), unique=True, max_size=8), st.integers(0, 20))
def test_history_is_sorted_and_holds_each_round_once(known, now):
    rounds = [entry["round"] for entry in append_round([{"round": number} for number in known], {"round": now})]
    assert rounds == [*sorted(number for number in known if number < now), now]


@given(st.integers(1, 40))
def test_rounds_shown_are_the_first_and_the_newest(count):
    history = [{"round": number} for number in range(count)]
    shown = tables.rounds_shown(history)
    assert (shown[0], shown[-1]) == (history[0], history[-1])
    assert len(shown) == min(count, tables.ROUNDS_SHOWN)
    assert len({entry["round"] for entry in shown}) == len(shown)


def test_class_rows_survive_classes_that_come_later():
    history = [
        {"teacher": {"per_class": {"a": 10.0}}, "boxes_per_class": {"a": 3}},
        {
            "teacher": {"per_class": {"a": 25.0, "b": None}},
            "boxes_per_class": {"a": 6},
            "class_weights": {"positive": {"a": 1.0, "b": None}, "claimed_background": {"a": 1.5}},
        },
    ]
    a, b = tables.class_rows(["a", "b"], history)
    assert (a.ap, a.change, a.boxes_frac) == ([10.0, 25.0], 15.0, 1.0)
    assert (a.class_weight, a.background_weight, b.background_weight) == (1.0, 1.5, None)
    assert (b.ap, b.change, b.boxes, b.class_weight) == ([None, None], None, 0, None)


WEIGHED = {"w_confidence": 0.2, "w_entropy": 0.5, "w_overlap": 0.3, "confidence": 0.5, "entropy": 1.0, "overlap": 0.0}


def test_shares_sum_to_one_and_are_absent_where_the_sum_is_not_the_uncertainty():
    shares = tables.metric_contributions(WEIGHED | {"uncertainty": 0.6})
    assert shares == pytest.approx({"entropy": 5 / 6, "overlap": 0.0, "confidence": 1 / 6})
    assert tables.metric_contributions(WEIGHED | {"uncertainty": 0.9}) == {}
    assert tables.metric_contributions(WEIGHED | {"w_confidence": -0.2, "uncertainty": 0.4}) == {}
    assert tables.metric_contributions({}) == {}
    assert tables.metric_contributions(dict.fromkeys(WEIGHED, 0.0) | {"uncertainty": 0.0}) == {}


def test_who_took_part_in_learning_from_unlabeled_images() -> None:
    def verdict(**changes: object) -> str:
        found = {"takes_part": True, "reason": "", "excluded_classes": []} | changes
        return narrative.pseudo_labels_verdict({"pseudo_labels": found})

    assert verdict().startswith("Unlabeled images took part:")
    assert "without pseudo-labels of “one” and “two”" in verdict(excluded_classes=["one", "two"])
    assert verdict(takes_part=False, reason="of this") == "This round was trained on labels only: of this."


def test_what_pretraining_did_is_said() -> None:
    assert narrative.pretraining({}) == ""
    found = {"iterations": 200, "images": 292, "first_loss": 21.0, "last_loss": 17.5}
    assert "292 images without labels, for 200 iterations; the loss went from 21.00 to 17.50" in narrative.pretraining(
        {"pretraining": found}
    )
    unused = {"pretraining": {"iterations": 0, "reason": "of this"}}
    assert narrative.pretraining(unused) == "The backbone was not pretrained on the pool in this round: of this."


def test_the_error_left_in_the_pool_has_its_interval_and_the_comparison_with_choosing() -> None:
    found = {"mean": 2.5, "low": 1.5, "high": 4.25}
    nothing = {"num_images": 3, "loss": None, "misses": None}
    drawn = {"num_images": 18, "loss": found, "misses": {"mean": 0.75, "low": 0.25, "high": 1.5}}
    document = {"level": 0.95, "drawn": drawn, "calibration": nothing}
    text = narrative.pool_error(document | {"chosen": {"loss": {"mean": 4.0}}})
    assert "By 18 randomly drawn images" in text
    assert "missed 0.75 (0.25 to 1.50) objects per image of the pool, at a loss of 2.50 (1.50 to 4.25)" in text
    assert "of 95 %" in text
    assert "chosen had a loss of 4.00" in text
    assert "chosen" not in narrative.pool_error(document | {"chosen": {"loss": None}})
    assert narrative.pool_error(document | {"drawn": nothing}).startswith("Too few")


def test_shares_are_named_where_several_had_a_part_in_the_batch() -> None:
    shares = {"rarity": 0.25, "diversity": 0.75}
    assert narrative.selection_shares({"objectives": shares, "near_duplicates": 3}) == (
        "Shares of the objectives in this batch: diversity 75 % and rarity 25 %. "
        "3 near duplicates of labeled or picked images came last."
    )
    portfolio = {"entropy": {"share": 0.4}, "coreset": {"share": 0.6}}
    assert narrative.selection_shares({"portfolio": portfolio}) == (
        "Shares of the strategies in this batch: coreset 60 % and entropy 40 %."
    )
    assert narrative.selection_shares({"objectives": {"rarity": 1.0}}) == ""
