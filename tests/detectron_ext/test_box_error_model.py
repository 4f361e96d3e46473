"""Outcomes and values against cases counted by hand; the model finds planted rules and claims nothing without one."""

from itertools import pairwise

import numpy as np
import pytest

from detectron_ext import box_error_model as bem
from detectron_ext.box_error_model import Outcome
from detectron_ext.uncertainty_metrics import box_overlaps, posterior_entropy

BOX = [10.0, 10, 20, 20]
FAR = [50.0, 50, 60, 60]


def test_each_detection_has_the_outcome_counted_by_hand() -> None:
    truth, classes = np.array([BOX, FAR]), np.array([0, 1])
    cases = [
        (BOX, 0.9, 0, Outcome.RIGHT),
        ([10, 10, 20, 19], 0.8, 0, Outcome.DUPLICATE),  # IoU 0.9 with an object that is taken
        ([14, 10, 24, 20], 0.7, 0, Outcome.BADLY_PLACED),  # 60 / 140
        ([14, 10, 24, 20], 0.6, 1, Outcome.BACKGROUND),  # no object of its class is near
        ([80, 80, 90, 90], 0.5, 0, Outcome.BACKGROUND),
        ([19, 10, 29, 20], 0.4, 0, Outcome.BACKGROUND),  # 10 / 190 is below 0.1
    ]
    boxes, scores, claimed, expected = (list(column) for column in zip(*cases, strict=True))
    outcome, missed = bem.detection_outcomes(np.array(boxes), np.array(scores), np.array(claimed), truth, classes)
    assert outcome.tolist() == expected
    assert missed.tolist() == [False, True]
    outcome, missed = bem.detection_outcomes(np.array([FAR]), np.array([0.9]), np.array([0]), truth, classes)
    assert outcome.tolist() == [Outcome.WRONG_CLASS]
    assert missed.tolist() == [True, False]


def test_without_labels_all_is_background_and_without_detections_all_is_missed() -> None:
    nothing = np.zeros((0, 4)), np.zeros(0, dtype=int)
    outcome, _ = bem.detection_outcomes(np.array([BOX]), np.array([0.5]), np.array([0]), *nothing)
    assert outcome.tolist() == [Outcome.BACKGROUND]
    _, missed = bem.detection_outcomes(nothing[0], np.zeros(0), nothing[1], np.array([BOX]), np.array([0]))
    assert missed.tolist() == [True]


def test_features_of_a_detection_are_those_written_out() -> None:
    """The second image has two boxes of 10 x 40 px that share half."""
    boxes = np.array([BOX, [0, 0, 10, 40], [0, 20, 10, 60]], dtype=np.float32)
    probs = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.75, 0.125, 0.125]])
    counts = np.array([1, 2, 0])
    found = bem.box_features(
        boxes,
        probs[:, :2].max(axis=1),
        np.array([0, 1, 0]),
        probs,
        posterior_entropy(probs),
        np.array([0.9, 0.8, 1.0]),
        box_overlaps(boxes, counts),
        counts,
        2,
    )
    entropy = -(0.25 * np.log(0.25) * 2 + 0.5 * np.log(0.5))
    assert found[0].tolist() == pytest.approx(
        [0.0, 0.25, 0.25, entropy, 0, 0, np.log(10), 0, 0, 0, 1, 0.9, 1, 0], abs=1e-6
    )
    size = np.log(20)
    expected = [0.0, 0.25, 0.25, entropy, 1 / 3, np.log(2), size, 0, np.log(4), np.log(2), 0.5, 0.8, 0, 1]
    assert found[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_rare_classes_weigh_more_within_bounds() -> None:
    """Counts 99, 9 and 0: 1/100, 1/10 and 1 around their geometric mean 1/10."""
    expected = np.array([1 / 3, 1, 3]) / np.mean([1 / 3, 1, 3])
    assert bem.inverse_frequency_weights(np.array([99, 9, 0]), 3.0).tolist() == pytest.approx(expected.tolist())
    assert bem.inverse_frequency_weights(np.array([7, 7]), 3.0).tolist() == [1, 1]


def test_the_rate_of_misses_is_found_and_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    mass = rng.gamma(2, 1, (4000, 2))
    missed = rng.poisson(0.2 + 0.7 * mass[:, 0])
    model = bem.fit_miss_model(mass, missed)
    assert model.coefficients_3 == pytest.approx([0.2, 0.7, 0.0], abs=0.08)
    assert (model.coefficients_3 >= 0).all()
    assert model.expected_misses(mass).sum() == pytest.approx(missed.sum(), rel=1e-3)  # as of any Poisson fit


def test_without_images_the_residual_mass_counts_and_without_misses_nothing_does() -> None:
    mass = np.array([[0.5, 3.0], [0.0, 0.0]])
    assert bem.fit_miss_model(np.zeros((0, 2)), np.zeros(0)).expected_misses(mass).tolist() == [0.5, 0.0]
    assert bem.fit_miss_model(mass, np.zeros(2)).expected_misses(mass) == pytest.approx([0.0, 0.0], abs=1e-9)


def make_data(num_images: int, seed: int, *, informative: bool = True) -> tuple[bem.LabeledDetections, np.ndarray]:
    """Detections whose third feature decides whether they are wrong; returns the true P(wrong) too."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 8, num_images)
    features = rng.normal(size=(int(counts.sum()), 5))
    p_wrong = 1 / (1 + np.exp(1 - 2.5 * features[:, 2])) if informative else np.full(len(features), 0.4)
    mass = rng.gamma(1, 1, (num_images, 2))
    missed = np.stack([rng.poisson(0.5 * mass[:, 0]), np.zeros(num_images, dtype=int)], axis=1)
    data = bem.LabeledDetections(
        [f"{n:04d}" for n in range(num_images)],
        np.arange(num_images) % 2,
        counts,
        features,
        rng.integers(0, 2, len(features)),
        np.where(rng.random(len(features)) < p_wrong, Outcome.BACKGROUND, Outcome.RIGHT),
        mass,
        missed,
        np.ones(num_images, dtype=bool),
    )
    return data, p_wrong


def realized(data: bem.LabeledDetections) -> np.ndarray:
    ends = np.concatenate([[0], np.cumsum(data.num_boxes_P)])
    wrong = [(data.outcome_B[a:b] != Outcome.RIGHT).sum() for a, b in pairwise(ends)]
    return np.array(wrong, dtype=float) + data.num_missed_PK.sum(axis=1)


def test_the_value_is_the_weighted_sum_written_out() -> None:
    data, _ = make_data(30, 0)
    model, weights = bem.fit_box_error_model(data), np.array([0.5, 1.5])
    values = model.image_values(data.features_BF, data.class_ids_B, data.num_boxes_P, data.mass_P2, weights)
    p_wrong, first = model.p_wrong(data.features_BF), 0
    a, b, c = model.misses.coefficients_3
    for image, count in enumerate(data.num_boxes_P.tolist()):
        boxes = range(first, first + count)
        misses = a + b * data.mass_P2[image, 0] + c * data.mass_P2[image, 1]
        expected = sum(weights[data.class_ids_B[i]] * p_wrong[i] for i in boxes)
        expected += misses * sum(weights[k] * model.miss_frac_K[k] for k in range(2))
        assert values[image] == pytest.approx(expected)
        first += count


def test_a_planted_rule_is_found_from_few_images_and_beats_a_rule_that_counts() -> None:
    data, _ = make_data(60, 1)
    fresh, p_wrong = make_data(400, 2)
    assert np.corrcoef(bem.fit_box_error_model(data).p_wrong(fresh.features_BF), p_wrong)[0, 1] > 0.9
    rivals = {"number of boxes": data.num_boxes_P.astype(float)}
    judged = bem.calibrate(data, np.ones(2), realized(data), rivals, num_folds=5, seed=0)
    assert judged.auc is not None
    assert judged.auc > 0.8
    assert judged.brier is not None
    assert judged.brier < judged.brier_constant * 0.9
    assert judged.beats_rival


def test_features_that_say_nothing_do_not_beat_the_number_of_boxes() -> None:
    """Wrong at the same rate everywhere: the number of boxes is all there is to know, but for the misses."""
    wins = 0
    for seed in range(10):
        data, _ = make_data(60, 10 + seed, informative=False)
        data = bem.LabeledDetections(**{**vars(data), "num_missed_PK": np.zeros((60, 2), dtype=int)})
        rivals = {"number of boxes": data.num_boxes_P.astype(float)}
        wins += bem.calibrate(data, np.ones(2), realized(data), rivals, num_folds=5, seed=0).beats_rival
    assert wins <= 1


def test_every_image_is_judged_by_a_model_that_did_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = make_data(20, 3)
    seen: list[set[str]] = []
    fit = bem.fit_box_error_model
    monkeypatch.setattr(bem, "fit_box_error_model", lambda part: (seen.append(set(part.image_ids)), fit(part))[1])
    bem.calibrate(data, np.ones(2), realized(data), {}, num_folds=4, seed=0)
    assert len(seen) == 4
    assert all(sum(image not in part for part in seen) == 1 for image in data.image_ids)


@pytest.mark.parametrize("outcome", [Outcome.RIGHT, Outcome.BACKGROUND])
def test_detections_that_are_all_alike_give_a_shrunk_constant(outcome: Outcome) -> None:
    data, _ = make_data(10, 4)
    data = bem.LabeledDetections(**{**vars(data), "outcome_B": np.full(len(data.outcome_B), outcome)})
    p_wrong = bem.fit_box_error_model(data).p_wrong(data.features_BF)
    count = len(data.outcome_B)
    expected = (1 if outcome == Outcome.RIGHT else count + 1) / (count + 2)
    assert p_wrong == pytest.approx(np.full(count, expected))
