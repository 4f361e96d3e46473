"""The three metrics against written-out loops, their edge cases and their bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from detectron_ext import uncertainty_metrics

finite = st.floats(-100, 100, allow_nan=False)


def iou_by_hand(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 50, (count, 2))], axis=1)


@given(seed=st.integers(0, 1000), count=st.integers(2, 8))
def test_overlap_is_the_mean_over_pairs(seed: int, count: int) -> None:
    boxes = random_boxes(seed, count)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    expected = sum(iou_by_hand(boxes[i].tolist(), boxes[j].tolist()) for i, j in pairs) / len(pairs)
    assert uncertainty_metrics.overlap(boxes) == pytest.approx(expected, abs=1e-12)
    assert 0 <= uncertainty_metrics.overlap(boxes) <= 1


@given(seed=st.integers(0, 1000), count=st.integers(1, 6), classes=st.integers(2, 5))
def test_entropy_is_the_sum_over_boxes(seed: int, count: int, classes: int) -> None:
    posteriors = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count)
    expected = sum(-sum(p * math.log(p) for p in row if p > 0) for row in posteriors.tolist())
    assert uncertainty_metrics.entropy(posteriors, "sum") == pytest.approx(expected)
    assert uncertainty_metrics.entropy(posteriors, "mean") == pytest.approx(expected / count)
    assert (uncertainty_metrics.posterior_entropy(posteriors) <= math.log(classes) + 1e-9).all()


def test_overlaps_of_many_images_are_those_of_each_pair_written_out() -> None:
    """Enough boxes that images are compared in rows; the images differ in their numbers of boxes."""
    counts = np.random.default_rng(1).integers(0, 30, 200)
    boxes = random_boxes(2, int(counts.sum()))
    boxes[::7, 2] = boxes[::7, 0]  # no area
    found, first = uncertainty_metrics.box_overlaps(boxes, counts), 0
    for number, count in enumerate(counts.tolist()):
        own = boxes[first : first + count].tolist()
        iou = np.array([[iou_by_hand(a, b) if a is not b else 0.0 for b in own] for a in own]).reshape(count, count)
        of_image = slice(first, first + count)
        mean = iou.sum() / (count * (count - 1)) if count > 1 else 0.0
        assert found.mean_P[number] == pytest.approx(mean, abs=1e-9)
        assert found.max_B[of_image].tolist() == pytest.approx(iou.max(axis=1, initial=0).tolist(), abs=1e-9)
        assert found.num_neighbors_B[of_image].tolist() == (iou > 0.3).sum(axis=1).tolist()
        first += count


def test_entropy_of_a_sure_box_is_zero() -> None:
    assert uncertainty_metrics.entropy(np.array([[0.0, 1.0, 0.0]]), "sum") == 0.0


def test_confidence_modes() -> None:
    scores = np.array([0.9, 0.5])
    assert uncertainty_metrics.confidence(scores, "sum") == pytest.approx(1.4)
    assert uncertainty_metrics.confidence(scores, "least_confidence") == pytest.approx(0.3)


@pytest.mark.parametrize("mode", ["sum", "least_confidence"])
def test_no_detection_gives_zeros(mode: str) -> None:
    found = uncertainty_metrics.uncertainty_metrics(
        np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)), confidence_mode=mode, entropy_mode="mean"
    )
    assert found == (0.0, 0.0, 0.0)


def test_one_detection_has_no_overlap() -> None:
    assert uncertainty_metrics.overlap(np.array([[0.0, 0, 5, 5]])) == 0.0


def test_boxes_without_area_do_not_divide_by_zero() -> None:
    assert uncertainty_metrics.overlap(np.zeros((3, 4))) == 0.0


@given(raw=arrays(np.float64, st.integers(1, 30), elements=finite), mode=st.sampled_from(["quantile", "minmax"]))
def test_normalised_metrics_keep_order_and_bounds(raw: np.ndarray, mode: str) -> None:
    values = uncertainty_metrics.normalize(raw, mode)
    assert ((values >= 0) & (values <= 1)).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(values[order]) >= -1e-12).all()


@pytest.mark.parametrize("mode", ["quantile", "minmax", "max"])
def test_an_all_equal_metric_takes_no_part(mode: str) -> None:
    assert uncertainty_metrics.normalize(np.full(5, 3.0), mode).tolist() == [0.0] * 5


@pytest.mark.parametrize("mode", ["quantile", "minmax", "max", "none"])
def test_an_empty_pool_is_no_error(mode: str) -> None:
    assert len(uncertainty_metrics.normalize(np.zeros(0), mode)) == 0


def test_average_ranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(3).integers(0, 9, 40).astype(np.float64)
    assert np.array_equal(uncertainty_metrics.average_ranks(values), rankdata(values))
    assert uncertainty_metrics.average_ranks(np.array([0.2, 0.1, 0.2])).tolist() == [2.5, 1.0, 2.5]
    assert uncertainty_metrics.average_ranks(np.zeros(0)).tolist() == []


def test_quantile_is_the_rank_whatever_the_outlier() -> None:
    assert uncertainty_metrics.normalize(np.array([1.0, 2.0, 1e9]), "quantile").tolist() == [0.0, 0.5, 1.0]


def test_equal_values_share_the_lowest_quantile_as_written_out() -> None:
    """Most images have an overlap of 0: they must not count as uncertain because they are many."""
    assert uncertainty_metrics.normalize(np.array([0.0, 0.4, 0.0, 0.2, 0.0, 0.2]), "quantile").tolist() == [
        0.0, 1.0, 0.0, 0.6, 0.0, 0.6,
    ]  # fmt: skip


@pytest.mark.parametrize(("policy", "level"), [("min", 0.0), ("median", 0.4), ("max", 0.9)])
def test_zero_detection_policy_decides_their_score(policy: str, level: float) -> None:
    values = uncertainty_metrics.impute_no_detections(
        np.array([0.0, 0.2, 0.4, 0.9]), np.array([True, False, False, False]), policy
    )
    assert values.tolist() == [level, 0.2, 0.4, 0.9]


def test_uncertainty_is_the_weighted_sum() -> None:
    score = uncertainty_metrics.uncertainty(np.array([[0.5, 1.0, 0.0]]), np.array([[0.2, 0.3, 0.5]]))
    assert score.tolist() == pytest.approx([0.4])


@given(seed=st.integers(0, 500))
def test_uncertainty_stays_in_the_unit_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = uncertainty_metrics.uncertainty(rng.random((20, 3)), rng.dirichlet(np.ones(3), 20))
    assert ((score >= 0) & (score <= 1)).all()


def test_spearman_is_taken_within_groups() -> None:
    rising = np.arange(5.0)
    # Between the groups the order is reversed; within each it is perfect.
    assert uncertainty_metrics.grouped_spearman([(rising + 100, rising), (rising, rising + 100)]) == pytest.approx(1.0)
    assert uncertainty_metrics.grouped_spearman([(rising, -rising)]) == pytest.approx(-1.0)
    assert uncertainty_metrics.grouped_spearman([(rising, np.ones(5))]) is None
