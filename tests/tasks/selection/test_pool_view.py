"""Embeddings are read from the shards, in the order that is asked for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.data.schemas import DETECTIONS
from tasks.selection.pool_view import PoolView
from tasks.storage import files


def write_shard(path: Path, vectors: dict[str, list[float]]) -> None:
    rows = [{"image_id": image, "embedding": vector} for image, vector in vectors.items()]
    files.write_table(path, pa.Table.from_pylist(rows, schema=DETECTIONS))


@pytest.fixture
def pool(tmp_path: Path) -> PoolView:
    write_shard(tmp_path / "shard-000000.parquet", {"a": [1, 0], "b": [0, 1]})
    write_shard(tmp_path / "shard-000001.parquet", {"c": [0.5, 0.5], "calibration": [9, 9]})
    write_shard(tmp_path / "labeled-000000.parquet", {"z": [3, 3], "y": [2, 2]})
    return PoolView(pd.DataFrame(index=pd.Index(["a", "b", "c"], name="image_id")), tmp_path)


def test_embeddings_come_in_the_order_of_the_candidates_or_of_the_ids(pool: PoolView) -> None:
    np.testing.assert_array_equal(pool.embeddings(), [[1, 0], [0, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(pool.embeddings(["c", "a"]), [[0.5, 0.5], [1, 0]])
    with pytest.raises(KeyError, match="missing"):
        pool.embeddings(["a", "missing"])


def test_labeled_images_have_embeddings_of_their_own(pool: PoolView) -> None:
    np.testing.assert_array_equal(pool.labeled_embeddings, [[2, 2], [3, 3]])
    assert PoolView(pool.candidates).labeled_embeddings.shape == (0, 0)
