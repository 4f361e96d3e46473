"""The test of drift against written-out numbers, and its promise: chance alone is seldom called drift."""

import numpy as np
import pytest
from scipy.stats import binom

from tasks.shadow import drift
from tasks.shadow.drift import LEVEL, measure_drift, novelty_p_values


def written_out(reference: np.ndarray, points: np.ndarray) -> list[float]:
    mean = reference.mean(axis=0)

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        a, b = one - mean, other - mean
        return 1 - float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    own = [min(distance(one, other) for j, other in enumerate(reference) if j != i) for i, one in enumerate(reference)]
    nearest = [min(distance(point, other) for other in reference) for point in points]
    return [(1 + sum(r >= d for r in own)) / (len(own) + 1) for d in nearest]


def test_p_values_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(23, 5)).astype(np.float32)
    points = random.normal(size=(9, 5)).astype(np.float32)
    expected = written_out(reference, points)
    np.testing.assert_allclose(novelty_p_values(reference, points, 0), expected, atol=1e-9)
    monkeypatch.setattr(drift, "_CHUNK", 4)
    np.testing.assert_allclose(novelty_p_values(reference, points, 0), expected, atol=1e-9)
    alone = [novelty_p_values(reference, points[[row]], 0)[0] for row in range(len(points))]
    np.testing.assert_allclose(alone, expected, atol=1e-9)  # whatever is tested beside it


def test_images_of_the_pools_own_kind_are_unlike_it_as_seldom_as_stated() -> None:
    shares = []
    for seed in range(200):
        both = np.random.default_rng(seed).normal(size=(240, 6)).astype(np.float32)
        shares.append((novelty_p_values(both[:200], both[200:], 0) <= LEVEL).mean())
    assert np.mean(shares) == pytest.approx(LEVEL, abs=0.015)


def test_images_from_elsewhere_have_the_least_p_value() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(size=(99, 8)).astype(np.float32) * np.array([1] * 7 + [0], dtype=np.float32)
    others = reference[:30] * np.float32(0.01) + np.eye(8, dtype=np.float32)[7]  # along an axis the pool lacks
    p_values = novelty_p_values(reference, others, 0)
    np.testing.assert_allclose(p_values, 0.01)
    assert measure_drift(p_values).num_unlike == 30
    assert measure_drift(p_values).p_value == pytest.approx(LEVEL**30)


def test_a_large_pool_is_drawn_from_and_the_promise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    reference, points = (random.normal(size=(n, 4)).astype(np.float32) for n in (1500, 600))
    monkeypatch.setattr(drift, "MAX_REFERENCE", 700)
    drawn = novelty_p_values(reference, points, 0)
    assert (drawn <= LEVEL).mean() == pytest.approx(LEVEL, abs=0.03)
    np.testing.assert_array_equal(drawn, novelty_p_values(reference, points, 0))
    assert (drawn >= 1 / 701).all()


def test_the_verdict_is_the_exact_binomial_test() -> None:
    p_values = np.array([0.01] * 6 + [0.5] * 34)
    found = measure_drift(p_values)
    assert (found.num_images, found.num_unlike) == (40, 6)
    assert found.p_value == pytest.approx(float(binom.sf(5, 40, LEVEL)))
    assert found.interval[0] < 6 / 40 < found.interval[1]
    assert measure_drift(np.zeros(0)).p_value == 1
