"""The estimate written out, and that its interval covers the truth of simulated campaigns as often as it says."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from detectron_ext.detection_loss import focal, match_detections
from detectron_ext.pool_error import estimate_mean

LEVEL = 0.95
SEEDS = 300
STUDIES = Path(__file__).parents[2] / "docs" / "studies"


def test_the_mean_weights_every_image_by_the_pool_it_was_drawn_from() -> None:
    """6 of 300 images and 9 of 180: weights 50 and 20, so the pools' means, 2 and 1, weigh 300 and 180."""
    values, weights = np.tile([1.0, 3.0, 0.0, 1.0, 2.0], 3), np.tile([50.0, 50, 20, 20, 20], 3)
    found = estimate_mean(values, weights, level=LEVEL)
    assert found is not None
    assert found.mean == pytest.approx((300 * 2 + 180 * 1) / 480)
    assert 0 <= found.low < found.mean < found.high


def test_without_skewness_the_interval_is_students() -> None:
    values = np.tile([-3.0, -1, 0, 0, 1, 3], 3) + 10
    found = estimate_mean(values, np.full(18, 7.0), level=0.9)
    expected = stats.t.interval(0.9, 17, loc=10, scale=stats.sem(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)


def test_the_interval_is_halls_written_out_for_skewed_values() -> None:
    values = np.tile([0.0, 0, 0, 1, 5, 0, 2], 3)
    found = estimate_mean(values, np.ones(21), level=LEVEL)
    a = stats.skew(values) / (6 * np.sqrt(21))
    for bound, probability in ((found.high, 0.025), (found.low, 0.975)):  # type: ignore[union-attr]
        t = stats.t.ppf(probability, 20)
        x = (np.cbrt(1 + 6 * a * (t - a)) - 1) / (2 * a)
        assert bound == pytest.approx(max(values.mean() - x * values.std(ddof=1) / np.sqrt(21), 0))


def test_a_constant_has_no_spread_and_few_images_no_estimate() -> None:
    assert estimate_mean(np.full(15, 2.0), np.ones(15), level=LEVEL) == (2.0, 2.0, 2.0)
    assert estimate_mean(np.arange(14.0), np.ones(14), level=LEVEL) is None


def make_detections(rng: np.random.Generator, difficulty: float) -> tuple[float, int]:
    """Realized loss and misses of one image: objects on a line, some of them found, and some detections of nothing."""
    count = int(rng.poisson(2))
    truth = np.arange(count)[:, None] * 50.0 + np.array([0.0, 0, 20, 20])
    is_found = rng.random(count) > 0.5 * difficulty
    false = int(rng.poisson(difficulty))
    boxes = np.concatenate([truth[is_found], np.full((false, 4), 900.0) + np.array([0, 0, 20, 20])])
    scores = rng.uniform(0.3, 1, len(boxes))
    matched = match_detections(boxes, scores, truth)
    num_missed = count - int((matched >= 0).sum())
    right, wrong = scores[matched >= 0], scores[matched < 0]
    loss = focal(right, 1.5).sum() + focal(1 - wrong, 1.5).sum() + num_missed * focal(np.array(0.05), 1.5)
    return float(loss), num_missed


@pytest.fixture(scope="module")
def teachers() -> list[np.ndarray]:
    """Loss and misses of 600 images by the teachers of six rounds, which get better, (600, 2) each."""
    rng = np.random.default_rng(0)
    difficulty = rng.beta(1, 3, 600)
    return [np.array([make_detections(rng, d * 0.9**number) for d in difficulty]) for number in range(6)]


def simulate(teachers: list[np.ndarray], seed: int, *, rounds: int, drawn: int) -> list[bool]:
    """One campaign: each round draws some images and chooses 20 others; whether loss and misses are covered."""
    rng = np.random.default_rng(seed)
    left, values, weights, truths = rng.choice(600, 300, replace=False), [], [], []
    for teacher in teachers[:rounds]:
        seen = teacher[left]
        picks = rng.choice(len(left), drawn, replace=False)
        values.append(seen[picks])
        weights.append(np.full(drawn, len(left) / drawn))
        truths.append(seen)
        wanted = np.argsort(-(seen[:, 0] * rng.lognormal(0, 0.7, len(left))))  # choosing finds the errors, roughly
        left = np.delete(left, [*picks, *wanted[~np.isin(wanted, picks)][:20]])
    truth = np.concatenate(truths).mean(axis=0)
    covered = []
    for column in (0, 1):
        found = estimate_mean(np.concatenate(values)[:, column], np.concatenate(weights), level=LEVEL)
        assert found is not None
        covered.append(found.low <= truth[column] <= found.high)
    return covered


@pytest.mark.parametrize(("rounds", "drawn"), [(1, 24), (5, 3), (6, 3)])
def test_the_interval_covers_the_truth_in_90_to_99_percent_of_campaigns(
    teachers: list[np.ndarray], rounds: int, drawn: int
) -> None:
    covered = np.array([simulate(teachers, seed, rounds=rounds, drawn=drawn) for seed in range(SEEDS)])
    for share in covered.mean(axis=0):
        assert 0.90 <= share <= 0.99


def stored_pools() -> list[Path]:
    """Realized loss and misses of whole pools, by trained teachers, which the studies of rankings keep."""
    return sorted(STUDIES.glob("ranking-*/parts/*/random/round-*.parquet"))


@pytest.mark.parametrize("drawn", [15, 24, 40])
def test_the_interval_covers_the_mean_of_real_pools(drawn: int) -> None:
    """Where few images hold much of the error it is too low more often, and hardly ever too high."""
    assert len(stored_pools()) >= 5
    for path in stored_pools():
        pool = pq.read_table(path, columns=["loss", "num_missed"])
        for column in pool.itercolumns():
            values = column.to_numpy().astype(np.float64)
            sides = np.array([side_of(values, drawn, seed) for seed in range(SEEDS)])
            assert np.mean(sides == 1) <= 0.04
            largest = np.sort(values)[-len(values) // 100 :].sum() / values.sum()
            if largest < 0.1:  # the hundredth with the most
                assert 0.90 <= np.mean(sides == 0) <= 0.99, (str(path), drawn)
            else:
                assert np.mean(sides == 0) >= 0.65


def side_of(values: np.ndarray, drawn: int, seed: int) -> int:
    """Where the interval of random draws lies: 0 around the mean of all, -1 below it, 1 above it."""
    picks = np.random.default_rng(seed).choice(len(values), drawn, replace=False)
    found = estimate_mean(values[picks], np.full(drawn, len(values) / drawn), level=LEVEL)
    assert found is not None
    return int(found.low > values.mean()) - int(found.high < values.mean())
