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


def test_regions_are_summed_over_the_classes_of_an_image(tmp_path: Path) -> None:
    rows = [
        {"image_id": "a", "region_class_ids": [0, 2], "region_features": [1, 0, 2, 4]},
        {"image_id": "b", "region_class_ids": [], "region_features": []},
        {"image_id": "c", "region_class_ids": [1], "region_features": [0, 7]},
    ]
    files.write_table(tmp_path / "shard-000000.parquet", pa.Table.from_pylist(rows, schema=DETECTIONS))
    files.write_table(tmp_path / "shard-000001.parquet", pa.Table.from_pylist([{"image_id": "d"}], schema=DETECTIONS))
    pool = PoolView(pd.DataFrame(index=pd.Index(["d", "c", "b", "a"], name="image_id")), tmp_path)
    np.testing.assert_allclose(pool.region_embeddings(), [[0, 0], [0, 1], [0, 0], [0.6, 0.8]], atol=1e-6)


def test_labeled_images_have_embeddings_of_their_own(pool: PoolView) -> None:
    np.testing.assert_array_equal(pool.labeled_embeddings, [[2, 2], [3, 3]])
    assert PoolView(pool.candidates).labeled_embeddings.shape == (0, 0)
