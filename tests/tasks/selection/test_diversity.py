"""The greedy order of ``spread`` against the rule written out: every row compared with every taken one."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.selection.diversity import NEAR_DUPLICATE_DISTANCE, spread

Rows = list[tuple[int, int, int]]


def one_by_one(
    vectors: NDArray[Any], covered: NDArray[Any], value: NDArray[Any], diversity: float, max_taken: int, least: float
) -> list[int]:
    """Take the row with the largest gain, the first of equals, until none is left that is no near duplicate."""
    nearest = [min((float(((row - other) ** 2).sum()) / 2 for other in covered), default=np.inf) for row in vectors]
    scale = max(*nearest, 1e-9)
    taken: list[int] = []
    while len(taken) < max_taken:
        others = [row for row in range(len(vectors)) if row not in taken and nearest[row] > least]
        if not others:
            break
        gain = {row: (1 - diversity) * value[row] + diversity * nearest[row] / scale for row in others}
        taken.append(max(others, key=lambda row: (gain[row], -row)))
        last = vectors[taken[-1]]
        nearest = [min(now, float(((row - last) ** 2).sum()) / 2) for now, row in zip(nearest, vectors, strict=True)]
    return taken


@given(
    st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=2, max_size=25),
    st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 25),
    st.integers(0, 1000),
)
def test_the_order_is_that_of_comparing_all_with_all(
    rows: Rows, covered_rows: Rows, diversity: float, max_taken: int, seed: int
) -> None:
    """On whole numbers all distances are exact, so that equal gains are equal in both."""
    vectors, covered = np.array(rows, dtype=np.float32), np.array(covered_rows, dtype=np.float32)
    value = np.random.default_rng(seed).integers(0, 5, len(rows)) / 4
    found = spread(vectors, covered, value, diversity, max_taken=max_taken, distance="euclidean")
    assert found.order == one_by_one(vectors, covered, value, diversity, max_taken, -np.inf)
    taken = np.array([*covered_rows, *(rows[row] for row in found.order)], dtype=np.float64)
    for row in set(range(len(rows))) - set(found.order):
        distances = ((vectors[row] - taken) ** 2).sum(axis=1) / 2
        assert found.distance_S[row] == distances.min()
        place = int(distances.argmin()) - len(covered_rows)
        assert found.nearest_S[row] == (found.order[place] if place >= 0 else -1 - (place + len(covered_rows)))


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]))
def test_near_duplicates_of_covered_and_taken_rows_are_left_out(seed: int, diversity: float) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(30, 4))
    vectors[20:] = vectors[:10] + 0.001 * random.normal(size=(10, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    covered, value = vectors[:3], random.random(30)
    found = spread(vectors.astype(np.float32), covered.astype(np.float32), value, diversity)
    assert found.order == one_by_one(vectors, covered, value, diversity, 30, NEAR_DUPLICATE_DISTANCE)
    assert set(found.duplicates) == set(range(30)) - set(found.order)
