"""Scores computed in batches are those of the metrics image by image, however shards and batches are cut."""

from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from detectron_ext.image_features import image_features
from detectron_ext.uncertainty_metrics import uncertainty_metrics
from tasks.data import schemas
from tasks.data.detections import read_detection_batches, read_detections
from tasks.params.stages import ScoringParams
from tasks.score import score
from tasks.storage import files

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
                "class_probs": posteriors.astype(np.float16).ravel(), "embedding": np.zeros(4, dtype=np.float16),
                "model_digest": "f" * 64,
            }
        )  # fmt: skip
    for start in range(0, len(rows), shard_size):
        table = pa.Table.from_pylist(rows[start : start + shard_size], schemas.DETECTIONS)
        files.write_table(folder / f"shard-{start:04d}.parquet", table)


@pytest.mark.parametrize(
    ("confidence", "entropy", "shard_size"),
    [(*modes, size) for modes, size in product(product(["sum", "least_confidence"], ["sum", "mean"]), [1, 5, 100])],
)
def test_raw_metrics_are_those_of_each_image(tmp_path: Path, confidence: str, entropy: str, shard_size: int) -> None:
    write_shards(tmp_path / "infer", COUNTS, shard_size)
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    params = ScoringParams.model_validate(
        {"confidence": confidence, "entropy": entropy, "normalize": "none", "no_detection_score": "min"}
    )
    score(
        params,
        num_classes=3,
        detections=tmp_path / "infer",
        calibration=tmp_path / "calibration.parquet",
        out=tmp_path / "score",
    )
    rows = files.read_table(tmp_path / "score" / "scores.parquet", schemas.SCORES).to_pylist()
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
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    params = ScoringParams(confidence="sum", entropy="sum", normalize="quantile", no_detection_score="median")
    score(
        params,
        num_classes=3,
        detections=tmp_path / "infer",
        calibration=tmp_path / "calibration.parquet",
        out=tmp_path / "score",
    )
    rows = files.read_table(tmp_path / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    for row, found in zip(rows, read_detections(tmp_path / "infer"), strict=True):
        per_class = [0.0, 0.0, 0.0]
        for class_id, box_score in zip(found.class_ids.tolist(), found.scores.tolist(), strict=True):
            per_class[class_id] += box_score
        assert row["expected_boxes_per_class"] == pytest.approx(per_class, abs=1e-6)
        assert row["expected_boxes"] == pytest.approx(sum(found.scores.tolist()), abs=1e-9)
        assert row["num_distinct_classes"] == len(set(found.class_ids.tolist()))
        metrics = np.array([row[name] for name in schemas.METRICS])
        expected = image_features(found.boxes_xyxy, found.scores, found.class_probs, metrics, 3)
        assert [*metrics, *row["features"]] == pytest.approx(expected.tolist(), abs=1e-6)


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
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    params = ScoringParams(confidence="sum", entropy="sum", normalize="quantile", no_detection_score="median")
    score(
        params,
        num_classes=3,
        detections=tmp_path / "infer",
        calibration=tmp_path / "calibration.parquet",
        out=tmp_path / "score",
    )
    assert len(files.read_table(tmp_path / "score" / "scores.parquet", schemas.SCORES)) == 0


def test_only_the_wanted_images_are_read(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS, 5)
    wanted = [f"{number:016x}" for number in (12, 3, 6)]
    assert [found.image_id for found in read_detections(tmp_path, wanted)] == sorted(wanted)
    assert list(read_detections(tmp_path, [])) == []
