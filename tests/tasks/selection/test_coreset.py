from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.schemas import DETECTIONS
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies import coreset
from tasks.selection.strategies.coreset import Coreset, greedy_k_center
from tasks.storage import files


def test_the_farthest_from_all_covered_comes_first_written_out() -> None:
    points = np.array([[1.0], [9.0], [4.0], [10.0]])
    # from 0: 10 is farthest; then 4 (4 from 0, 6 from 10), then 1 and 9 are both 1 away: the lower index first
    assert greedy_k_center(points, np.array([[0.0]]), num_centers=4) == [3, 2, 0, 1]
    assert greedy_k_center(points, np.array([[0.0]]), num_centers=1) == [3, 2, 0, 1]
    assert greedy_k_center(points, np.array([[10.0], [9.0], [4.0]]), num_centers=1)[0] == 0


def test_small_distances_count_far_from_the_origin() -> None:
    points = 1000 + np.array([[0.0], [0.1], [0.3]], dtype=np.float32)
    assert greedy_k_center(points, np.array([[1000.0]], dtype=np.float32), num_centers=3) == [2, 1, 0]


def test_without_labels_it_begins_in_the_middle() -> None:
    points = np.array([[0.0], [5.0], [10.0], [11.0]])  # mean 6.5
    assert greedy_k_center(points, np.zeros((0, 1)), num_centers=4) == [1, 3, 0, 2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 12))
def test_each_choice_is_the_farthest_by_definition(points: list[tuple[int, int]], num_centers: int) -> None:
    array, covered = np.array(points, dtype=np.float64), [np.array([0.0, 0.0])]
    order = greedy_k_center(array, np.array(covered), num_centers=min(num_centers, len(points)))
    assert sorted(order) == list(range(len(points)))
    for position, index in enumerate(order[: min(num_centers, len(points))]):
        rest = order[position:]
        distance = {i: min(float(((array[i] - c) ** 2).sum()) for c in covered) for i in rest}
        assert distance[index] == max(distance.values())
        covered.append(array[index])


def test_of_a_large_pool_a_draw_is_ordered_and_the_others_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "_MAX_POOL", 10)
    vectors = {f"{number:02d}": [float(number), 0.0] for number in range(30)}
    table = pa.Table.from_pylist([{"image_id": i, "embedding": v} for i, v in vectors.items()], schema=DETECTIONS)
    files.write_table(tmp_path / "shard-000000.parquet", table)
    candidates = pd.DataFrame(index=pd.Index(list(vectors), name="image_id"))
    ranking = Coreset().rank(PoolView(candidates, tmp_path), seed=0)
    assert sorted(ranking) == sorted(vectors)
    drawn = sorted(ranking[:10])
    points = np.array([vectors[image] for image in drawn])
    assert ranking[:10] == [drawn[i] for i in greedy_k_center(points, np.zeros((0, 2)), num_centers=10)]
    assert sorted(Coreset().rank(PoolView(candidates, tmp_path), seed=1)[:10]) != drawn


def test_of_planted_copies_one_is_taken_before_the_others_come(tmp_path: Path) -> None:
    vectors = {f"{group}{copy}": [float(10 * group), 0.0] for group in (1, 2, 3) for copy in "abc"}
    for name, rows in (("shard-000000", vectors), ("labeled-000000", {"known": [0.0, 0.0]})):
        table = pa.Table.from_pylist([{"image_id": i, "embedding": v} for i, v in rows.items()], schema=DETECTIONS)
        files.write_table(tmp_path / f"{name}.parquet", table)
    candidates = pd.DataFrame(index=pd.Index(list(vectors), name="image_id"))
    ranking = Coreset().rank(PoolView(candidates, tmp_path), seed=0)
    assert sorted(ranking) == sorted(vectors)
    assert {image[0] for image in ranking[:3]} == {"1", "2", "3"}
    shuffled = candidates.sample(frac=1, random_state=1)
    assert Coreset().rank(PoolView(shuffled, tmp_path), seed=0) == ranking
