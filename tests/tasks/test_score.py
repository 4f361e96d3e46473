"""Scores computed in batches are those of the metrics image by image, however shards and batches are cut."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectron_ext.image_features import image_features
from detectron_ext.uncertainty_metrics import uncertainty_metrics
from tasks.data import schemas
from tasks.data.detections import read_detection_batches, read_detections
from tasks.params import StageParams, load_params
from tasks.score import score
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch

REPOSITORY = Path(__file__).parents[2]
COUNTS = [0, 3, 1, 2, 0, 3, 40, 2, 3, 1, 0, 7, 3]


def write_shards(folder: Path, counts: list[int], shard_size: int) -> None:
    rng = np.random.default_rng(3)
    rows = []
    for number, count in enumerate(counts):
        corner = rng.uniform(0, 40, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0, 30, (count, 2))], axis=1)
        boxes[1::3, 2] = boxes[1::3, 0]  # no area
        posteriors = rng.dirichlet(np.full(4, 0.3), count).reshape(count, 4)
        rows.append(
            {
                "image_id": f"{number:016x}", "boxes_xyxy": boxes.ravel(), "scores": rng.random(count),
                "class_ids": posteriors[:, :3].argmax(axis=1) if count else [],
                "class_probs": posteriors.astype(np.float16).ravel(), "residual_mass": number / 8,
                "embedding": np.zeros(4, dtype=np.float16),
                "model_digest": "f" * 64,
            }
        )  # fmt: skip
    for start in range(0, len(rows), shard_size):
        table = pa.Table.from_pylist(rows[start : start + shard_size], schemas.DETECTIONS)
        files.write_table(folder / f"shard-{start:04d}.parquet", table)


def run_score(folder: Path, **scoring: str) -> list[dict[str, Any]]:
    """Score with classes a, b and c and without any returned batch."""
    files.write_table(folder / "calibration.parquet", schemas.ANNOTATED.empty_table())
    write_batch(folder / "labels", 0, make_label("seed", offered_batch=0))
    files.write_table(
        folder / "frozen" / "batch-0000.parquet",
        schemas.with_class_names(schemas.DETECTIONS_AT_SELECTION, ["a", "b", "c"]).empty_table(),
    )
    params = load_params(REPOSITORY / "params.yaml")
    changed = {"classes": ["a", "b", "c"], "scoring": params.scoring.model_copy(update=scoring)}
    score(
        StageParams(params.model_copy(update=changed), ("seed", "classes", "scoring", "dwa")),
        detections=folder / "infer",
        calibration=folder / "calibration.parquet",
        labels=folder / "labels",
        detections_at_selection=folder / "frozen",
        out=folder / "score",
    )
    return files.read_table(folder / "score" / "scores.parquet", schemas.SCORES).to_pylist()


@pytest.mark.parametrize(
    ("confidence", "entropy", "shard_size"),
    [(*modes, size) for modes, size in product(product(["sum", "least_confidence"], ["sum", "mean"]), [1, 5, 100])],
)
def test_raw_metrics_are_those_of_each_image(tmp_path: Path, confidence: str, entropy: str, shard_size: int) -> None:
    write_shards(tmp_path / "infer", COUNTS, shard_size)
    rows = run_score(tmp_path, confidence=confidence, entropy=entropy, normalize="none", no_detection_score="min")
    assert [row["num_boxes"] for row in rows] == COUNTS
    for row, found in zip(rows, read_detections(tmp_path / "infer"), strict=True):
        expected = uncertainty_metrics(
            found.boxes_xyxy, found.scores, found.class_probs, confidence_mode=confidence, entropy_mode=entropy
        )
        assert row["image_id"] == found.image_id
        assert row["has_no_detections"] == (len(found.scores) == 0)
        assert [row[f"{name}_raw"] for name in schemas.METRICS] == pytest.approx(list(expected), rel=1e-6, abs=1e-9)


def test_what_later_stages_need_is_that_of_each_image(tmp_path: Path) -> None:
    """Expected boxes, classes and features, image by image; the features follow the metrics in one vector."""
    write_shards(tmp_path / "infer", COUNTS, 5)
    rows = run_score(tmp_path)
    for number, (row, found) in enumerate(zip(rows, read_detections(tmp_path / "infer"), strict=True)):
        per_class = [0.0, 0.0, 0.0]
        for class_id, box_score in zip(found.class_ids.tolist(), found.scores.tolist(), strict=True):
            per_class[class_id] += box_score
        assert row["expected_boxes_per_class"] == pytest.approx(per_class, abs=1e-6)
        assert row["expected_boxes"] == pytest.approx(sum(found.scores.tolist()), abs=1e-6)
        assert row["num_distinct_classes"] == len(set(found.class_ids.tolist()))
        metrics = np.array([row[name] for name in schemas.METRICS])
        expected = image_features(found.boxes_xyxy, found.scores, found.class_probs, metrics, 3)
        assert [*metrics, *row["features"]] == pytest.approx(expected.tolist(), abs=1e-6)
        assert (row["residual_mass"], row["expected_misses"]) == (number / 8, number / 8)  # taken at its word
        assert row["value"] is None  # no labeled image to learn from


@pytest.mark.parametrize(("confidence", "entropy"), [("sum", "sum"), ("least_confidence", "mean")])
def test_an_image_without_detections_competes_by_what_was_missed(tmp_path: Path, confidence: str, entropy: str) -> None:
    """Written out: its missed objects are boxes of the pool's average kind; the last one misses most."""
    counts = [3, 1, 4, 2, 0, 5, 0]
    write_shards(tmp_path / "infer", counts, 5)
    rows = run_score(tmp_path, confidence=confidence, entropy=entropy, no_detection_score="estimate")
    for name, is_sum in (("confidence", confidence == "sum"), ("entropy", entropy == "sum")):
        raw = [row[f"{name}_raw"] for row in rows]
        total = sum(value if is_sum else value * count for value, count in zip(raw, counts, strict=True))
        for image in (4, 6):
            missed = rows[image]["expected_misses"]
            raw[image] = total / sum(counts) * (missed if is_sum else 1 - np.exp(-missed))
        for row, own in zip(rows, raw, strict=True):
            assert row[name] == pytest.approx(sum(value < own for value in raw) / (len(raw) - 1))
        assert rows[6][name] > rows[4][name] >= 0


def test_equal_images_share_the_lowest_rank(tmp_path: Path) -> None:
    """Of 13 images the three without boxes are the minimum of every metric, and get 0."""
    write_shards(tmp_path / "infer", COUNTS, 5)
    rows = run_score(tmp_path, no_detection_score="min")
    assert [[row[name] for name in schemas.METRICS] for row in rows if row["has_no_detections"]] == [[0.0] * 3] * 3
    single = [row["overlap"] for row in rows if row["num_boxes"] == 1]
    assert single == [0.0, 0.0]  # no overlap either: they share the rank of those without boxes


@pytest.mark.parametrize("shard_size", [1, 4, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 13, 1000])
def test_batches_hold_every_image_once_and_in_order(tmp_path: Path, batch_size: int, shard_size: int) -> None:
    write_shards(tmp_path, COUNTS, shard_size)
    batches = list(read_detection_batches(tmp_path, batch_size=batch_size))
    assert all(0 < len(batch.image_ids) <= batch_size for batch in batches)
    images = list(read_detections(tmp_path))
    assert [image_id for batch in batches for image_id in batch.image_ids] == [image.image_id for image in images]
    assert [count for batch in batches for count in batch.num_boxes.tolist()] == COUNTS
    stored = {
        "boxes_xyxy": [image.boxes_xyxy for image in images],
        "scores": [image.scores for image in images],
        "class_ids": [image.class_ids for image in images],
        "class_probs": [image.class_probs for image in images if len(image.scores)],
    }
    for name, arrays in stored.items():
        parts = [getattr(batch, name) for batch in batches if len(batch.scores)]
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(arrays))


def test_a_folder_without_detections_gives_an_empty_table(tmp_path: Path) -> None:
    assert run_score(tmp_path) == []


def test_only_the_wanted_images_are_read(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS, 5)
    wanted = [f"{number:016x}" for number in (12, 3, 6)]
    assert [found.image_id for found in read_detections(tmp_path, wanted)] == sorted(wanted)
    assert list(read_detections(tmp_path, [])) == []


def test_objectness_entropy_is_normalized_also_of_images_without_a_box(tmp_path: Path) -> None:
    write_shards(tmp_path / "infer", [2, 0, 1], 3)
    shard = tmp_path / "infer" / "shard-0000.parquet"
    table = files.read_table(shard, schemas.DETECTIONS)
    assert {row["objectness_entropy"] for row in run_score(tmp_path)} == {0.0}  # not measured
    column = table.schema.get_field_index("objectness_entropy_raw")
    measured = table.set_column(column, "objectness_entropy_raw", pa.array([0.25, 0.75, 0.5], pa.float32()))
    files.write_table(shard, measured)
    rows = run_score(tmp_path, normalize="quantile")
    assert [(row["objectness_entropy_raw"], row["objectness_entropy"]) for row in rows] == [
        (0.25, 0.0),
        (0.75, 1.0),
        (0.5, 0.5),
    ]
