"""Value per minute: the order written out, near duplicates last, and what it says without a value."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.data.schemas import CANDIDATE_SCORES, DETECTIONS, UNCERTAINTY
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.value_per_minute import ValuePerMinute
from tasks.storage import files

VALUES = {"a": 4.0, "b": 1.0, "c": 3.0, "d": 3.0, "e": 0.0}
MINUTES = {"a": 8.0, "b": 0.5, "c": 2.0, "d": 2.0, "e": 1.0}
APART = {"a": [1.0, 0, 0], "b": [0, 1.0, 0], "c": [0, 0, 1.0], "d": [-1.0, 0, 0], "e": [0, -1.0, 0]}


def make_pool(
    folder: Path, embeddings: dict[str, list[float]], *, value: bool = True, labeled: list[list[float]] | None = None
) -> PoolView:
    names = [*CANDIDATE_SCORES[1:], *UNCERTAINTY.names[1:], "expected_minutes"]
    table = pd.DataFrame(0.5, index=pd.Index(list(VALUES), name="image_id"), columns=names)
    table = table.assign(value=list(VALUES.values()) if value else np.nan, expected_minutes=list(MINUTES.values()))
    table["uncertainty"] = [0.1, 0.2, 0.9, 0.4, 0.3]
    write_shard(folder / "infer" / "shard-000000.parquet", embeddings)
    write_shard(folder / "infer" / "labeled-000000.parquet", {f"l{n}": row for n, row in enumerate(labeled or [])})
    return PoolView(table, folder / "infer", batch_size=5)


def write_shard(path: Path, embeddings: dict[str, list[float]]) -> None:
    lists = ("boxes_xyxy", "scores", "class_ids", "class_probs", "stability", "region_class_ids", "region_features")
    rows = [
        {"image_id": name, "embedding": row, "residual_mass": 0.0, "model_digest": "f", **{key: [] for key in lists}}
        for name, row in embeddings.items()
    ]
    files.write_table(path, pa.Table.from_pylist(rows, schema=DETECTIONS))


def test_the_order_is_value_over_minutes_with_ties_by_id(tmp_path: Path) -> None:
    """Per minute: b 2, c and d 1.5, a 0.5, e 0."""
    pool, strategy = make_pool(tmp_path, APART), ValuePerMinute()
    assert strategy.rank(pool, seed=0) == ["b", "c", "d", "a", "e"]
    shuffled = PoolView(pool.candidates.iloc[::-1], tmp_path / "infer", batch_size=5)
    assert strategy.rank(shuffled, seed=1) == ["b", "c", "d", "a", "e"]
    said = strategy.reason(pool.candidates.reset_index().iloc[0], position=4, num_candidates=5)
    assert said == (
        "value per minute 0.50 (rank 4 of 5): 4.00 errors expected, rare classes counted more, 0.50 misses, "
        "in 8.00 minutes"
    )


def test_a_near_duplicate_of_a_better_image_comes_last(tmp_path: Path) -> None:
    pool, strategy = make_pool(tmp_path, APART | {"d": [0.0, 0.05, 1.0]}), ValuePerMinute()
    assert strategy.rank(pool, seed=0) == ["b", "c", "a", "e", "d"]
    rows = pool.candidates.reset_index()
    assert "much like another image" in strategy.reason(rows.iloc[3], position=5, num_candidates=5)
    assert "much like" not in strategy.reason(rows.iloc[2], position=2, num_candidates=5)


def test_an_image_like_a_labeled_one_comes_last_too(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, APART, labeled=[[0.0, 1.0, 0.0]])
    assert ValuePerMinute().rank(pool, seed=0) == ["c", "d", "a", "e", "b"]


def test_without_a_value_it_is_uncertainty_per_minute_and_says_so(tmp_path: Path) -> None:
    """Per minute: a 0.0125, b 0.4, c 0.45, d 0.2, e 0.3."""
    pool, strategy = make_pool(tmp_path, APART, value=False), ValuePerMinute()
    assert strategy.rank(pool, seed=0) == ["c", "b", "e", "d", "a"]
    said = strategy.reason(pool.candidates.reset_index().iloc[2], position=1, num_candidates=5)
    assert said.startswith("uncertainty per minute 0.45 (rank 1 of 5): uncertainty 0.90 in 2.00 minutes, as the value")


@pytest.mark.parametrize("value", [True, False])
def test_an_empty_pool_has_an_empty_order(tmp_path: Path, value: bool) -> None:
    pool = make_pool(tmp_path, APART, value=value)
    empty = PoolView(pool.candidates.iloc[:0], tmp_path / "infer", batch_size=5)
    assert ValuePerMinute().rank(empty, seed=0) == []
