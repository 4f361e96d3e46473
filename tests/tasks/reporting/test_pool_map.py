"""The map of the pool: written-out components, bounds, and near duplicates."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED, DETECTIONS, UNLABELED
from tasks.reporting.pool_map import (
    MAX_LABELED,
    MAX_POINTS,
    count_near_duplicates,
    draw_pool_map,
    make_pool_map,
    principal_plane,
)
from tasks.storage import files


def test_the_plane_holds_the_two_largest_directions() -> None:
    """A cross with arms 3 and 1 in two of four dimensions: variances 18 and 2 of 20."""
    vectors = np.zeros((4, 4))
    vectors[0, 2], vectors[1, 2], vectors[2, 0], vectors[3, 0] = 3, -3, 1, -1
    xy, variance_frac = principal_plane(vectors)
    assert xy.tolist() == [[1, 0.5], [0, 0.5], [0.5, 1], [0.5, 0]]
    assert variance_frac == pytest.approx(1.0)
    assert (principal_plane(-vectors[[1, 0, 3, 2]])[0] == xy).all()  # the sign is not left to chance


def test_vectors_that_are_all_alike_are_one_point() -> None:
    xy, variance_frac = principal_plane(np.ones((3, 5)))
    assert xy.tolist() == [[0, 0]] * 3
    assert variance_frac == 1.0


def test_near_duplicates_are_those_of_labeled_and_picked_images_other_than_themselves() -> None:
    angles_deg = {"labeled": [0.0], "picked": [5.0, 90.0], "pool": [4.0, 45.0, 91.0, 180.0, 270.0]}
    groups = [group for group, found in angles_deg.items() for _ in found]
    radians = np.deg2rad([angle for found in angles_deg.values() for angle in found])
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    vectors -= vectors.mean(axis=0)
    assert count_near_duplicates(vectors, groups) == {"pool": 2, "explored": 0, "picked": 1}


def write_pool(folder: Path, num_unlabeled: int, num_labeled: int) -> None:
    random = np.random.default_rng(1)
    for kind, count, schema in (("unlabeled", num_unlabeled, UNLABELED), ("labeled", num_labeled, ANNOTATED)):
        ids = [f"{kind}{n:05d}" for n in range(count)]
        rows = [{"image_id": i, "uri": f"s3://bucket/{i}.png"} for i in ids]
        files.write_table(folder / f"{kind}.parquet", pa.Table.from_pylist(rows, schema=schema))
        found = [{"image_id": i, "embedding": random.normal(size=4).astype(np.float16)} for i in ids]
        name = "shard" if kind == "unlabeled" else "labeled"
        files.write_table(folder / "infer" / f"{name}-000000.parquet", pa.Table.from_pylist(found, schema=DETECTIONS))


def test_a_large_pool_gives_a_bounded_map_with_all_picks_on_top(tmp_path: Path) -> None:
    write_pool(tmp_path, 3000, 900)
    picked = [f"unlabeled{n:05d}" for n in range(0, 300, 10)]
    arguments = (tmp_path / "infer", tmp_path / "unlabeled.parquet", tmp_path / "labeled.parquet", picked, picked[:3])
    found = make_pool_map(*arguments)
    assert found is not None
    assert len(found.image_ids) == len(set(found.image_ids)) == MAX_POINTS
    assert (found.count("labeled"), found.count("picked"), found.count("explored")) == (MAX_LABELED, 27, 3)
    assert set(found.image_ids[-27:]) == set(picked[3:])
    assert ((found.xy_P2 >= 0) & (found.xy_P2 <= 1)).all()
    again = make_pool_map(*arguments)
    assert again is not None
    assert again.image_ids == found.image_ids
    assert len(draw_pool_map(found, tmp_path, "A map of the pool", with_pictures=True)) < 600_000


def test_a_pool_of_two_images_has_no_map(tmp_path: Path) -> None:
    write_pool(tmp_path, 1, 1)
    parts = (tmp_path / "infer", tmp_path / "unlabeled.parquet", tmp_path / "labeled.parquet")
    assert make_pool_map(*parts, [], []) is None
