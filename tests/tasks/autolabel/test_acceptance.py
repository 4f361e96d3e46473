"""What is accepted holds the promise at the stated rate, and nothing is accepted without evidence."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tasks.autolabel.acceptance import accept, expected_errors, operating_scores
from tasks.autolabel.evidence import Evidence, FoundBoxes, JudgedBoxes
from tests.tasks.autolabel.planted import PARAMS, planted, planted_evidence, right_probability

NUM_SEEDS = 120


def test_the_promises_hold_at_the_stated_rate() -> None:
    """Over many samples from one pool: true precision at the chosen threshold, true share of wrong whole images."""
    pool = planted(np.random.default_rng(1), 1500)
    nothing = pool.found.subset(np.zeros(1500, dtype=bool))
    accepted = broken = whole = whole_broken = 0
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(100 + seed)
        sample, validation = planted(rng, 300), planted(rng, 60)
        found = accept(Evidence(pool.found, sample, nothing, 0, 300, validation), PARAMS, ["x"])
        if found.is_box_accepted.any():
            accepted += 1
            wrong = 1 - right_probability(pool.found.scores[found.is_box_accepted]).mean()
            broken += wrong > 1 - PARAMS.wanted_precision
        if found.is_image_accepted.any():
            whole += 1
            is_right = pool.is_image_right(found.is_box_kept)[found.is_image_accepted]
            whole_broken += (~is_right).mean() > PARAMS.max_wrong_images_frac
    level = 1 - PARAMS.confidence_level
    most = NUM_SEEDS * level + 3 * math.sqrt(NUM_SEEDS * level * (1 - level))
    assert accepted > 0.8 * NUM_SEEDS
    assert whole > 0.4 * NUM_SEEDS
    assert broken <= most
    assert whole_broken <= most


def test_labels_of_the_sample_do_not_move_where_the_tests_begin() -> None:
    evidence = planted_evidence(np.random.default_rng(2), 800, 300)
    right = accept(evidence, PARAMS, ["x"]).class_rules[0]
    wrong = replace(evidence, sample=replace(evidence.sample, is_right=np.zeros_like(evidence.sample.is_right)))
    refused = accept(wrong, PARAMS, ["x"])
    rule = refused.class_rules[0]
    assert right.threshold is not None
    assert (rule.threshold, rule.num_wrong) == (None, rule.num_sample_boxes)
    assert rule.can_be_tested
    assert not refused.is_box_accepted.any()
    assert not refused.is_image_accepted.any()


def test_all_right_accepts_down_to_the_lowest_score() -> None:
    evidence = planted_evidence(np.random.default_rng(3), 600, 200)
    sample = replace(
        evidence.sample,
        is_right=np.ones_like(evidence.sample.is_right),
        num_missed=np.zeros_like(evidence.sample.num_missed),
    )
    found = accept(replace(evidence, sample=sample), PARAMS, ["x"])
    rule = found.class_rules[0]
    assert rule.threshold == pytest.approx(float(evidence.pool.scores.min()))
    assert rule.num_wrong == 0
    assert rule.precision_bound is not None
    assert rule.precision_bound >= 0.9
    crowded = evidence.pool.num_boxes > rule.max_per_image
    np.testing.assert_array_equal(found.is_box_accepted, ~crowded[evidence.pool.image_of_box])
    assert found.is_box_accepted.mean() >= 1 - PARAMS.max_crowd_boxes_frac
    assert found.is_image_accepted.any()


def test_too_few_labels_accept_nothing_and_say_how_many_are_needed() -> None:
    evidence = planted_evidence(np.random.default_rng(4), 600, 25)
    found = accept(evidence, PARAMS, ["x", "never found"])
    rule, other = found.class_rules
    assert (rule.threshold, rule.can_be_tested) == (None, False)
    assert rule.calibration_images_needed is not None
    assert rule.calibration_images_needed > 25
    assert other.reason == "the model found none of it in the pool"
    assert not found.is_box_accepted.any()
    enough = planted_evidence(np.random.default_rng(5), 600, rule.calibration_images_needed + 20)
    perfect = replace(enough.sample, is_right=np.ones_like(enough.sample.is_right))
    assert accept(replace(enough, sample=perfect), PARAMS, ["x"]).class_rules[0].threshold is not None
    few = accept(planted_evidence(np.random.default_rng(6), 600, 19), PARAMS, ["x"]).class_rules[0]
    assert "fewer than autolabel.min_calibration_images" in few.reason


def test_no_sample_at_all() -> None:
    evidence = planted_evidence(np.random.default_rng(7), 100, 0)
    found = accept(evidence, PARAMS, ["x"])
    assert not found.is_box_accepted.any()
    assert found.image_rule.max_expected_errors is None
    assert found.image_rule.reason == "of no class enough is known"


def test_chosen_images_make_the_promise_harder() -> None:
    """They left the pool, and may have been the ones without an error: the risk that is tested falls in proportion."""
    evidence = planted_evidence(np.random.default_rng(8), 600, 300)
    chosen = planted(np.random.default_rng(9), 600).found
    plain, harder = (
        accept(one, PARAMS, ["x"]).class_rules[0]
        for one in (evidence, replace(evidence, chosen=chosen, num_chosen=600))
    )
    assert plain.threshold is not None
    assert harder.threshold is None or harder.threshold > plain.threshold
    assert plain.precision_bound is not None


def test_an_image_with_a_class_of_which_nothing_can_be_shown_is_never_accepted_whole() -> None:
    evidence = planted_evidence(np.random.default_rng(10), 500, 200)
    rare = evidence.pool.class_ids.copy()
    rare[::50] = 1
    sample = replace(
        evidence.sample,
        is_right=np.ones_like(evidence.sample.is_right),
        num_missed=np.zeros_like(evidence.sample.num_missed),
    )
    found = accept(replace(evidence, pool=replace(evidence.pool, class_ids=rare), sample=sample), PARAMS, ["x", "rare"])
    assert not found.class_rules[1].can_be_tested
    has_rare = np.bincount(evidence.pool.image_of_box[rare == 1], minlength=500) > 0
    assert found.is_image_accepted.any()
    assert not found.is_image_accepted[has_rare].any()
    assert not found.is_box_accepted[rare == 1].any()


def test_expected_errors_and_right_images_written_out() -> None:
    found = FoundBoxes(
        ["a", "b", "c"],
        np.array([2, 0, 1]),
        np.zeros((3, 4), np.float32),
        np.array([0.9, 0.7, 0.5], np.float32),
        np.zeros(3, np.int64),
        np.array([0.1, 0.25, 0.0]),
    )
    kept = np.array([True, True, False])
    np.testing.assert_allclose(expected_errors(found, kept), [0.1 + 0.3 + 0.1, 0.25, 0.5], atol=1e-6)
    judged = JudgedBoxes(found, np.array([True, True, False]), np.array([0, 1, 0]))
    np.testing.assert_array_equal(judged.is_image_right(kept), [True, False, True])
    np.testing.assert_array_equal(judged.is_image_right(np.ones(3, dtype=bool)), [True, False, False])
    np.testing.assert_array_equal(judged.is_image_right(np.zeros(3, dtype=bool)), [False, False, True])


def test_operating_scores_written_out() -> None:
    """Class 0: right, right, wrong, right, wrong by falling score: 2 more right than wrong from the second on."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.9], np.float32)
    found = FoundBoxes(
        ["a"], np.array([6]), np.zeros((6, 4), np.float32), scores, np.array([0, 0, 0, 0, 0, 1]), np.array([0.0])
    )
    judged = JudgedBoxes(found, np.array([True, True, False, True, False, False]), np.array([0]))
    np.testing.assert_allclose(operating_scores(judged, 3), [0.8, 1.0, 0.5], atol=1e-6)
