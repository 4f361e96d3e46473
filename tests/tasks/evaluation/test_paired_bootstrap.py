"""The weighted mAP against the COCO evaluation itself, and what the bootstrap sees."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.average_precision import average_precisions
from tasks.evaluation.coco_map import coco_map
from tasks.evaluation.coco_matching import match_detections
from tasks.evaluation.paired_bootstrap import bootstrap_map, compare_models, mean_over_classes

CLASSES = ("a", "b", "c", "never there")
IMAGES = 25


def random_detections(noise_px: float, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Truth, and boxes beside it among false ones; all scores differ."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(IMAGES):
        count = int(random.integers(0, 6))
        corners = random.uniform(0, 80, (count, 2))
        boxes = np.hstack([corners, corners + random.uniform(10, 40, (count, 2))])
        labels = random.integers(0, len(CLASSES) - 1, count)
        shape = {"image_id": f"{number:03d}", "uri": "", "width_px": 200, "height_px": 200, "batch": -1}
        truth.append({**shape, "boxes_xyxy": boxes.ravel(), "class_ids": labels})
        noise = np.random.default_rng(number).normal(0, 1, boxes.shape) * noise_px
        false = random.uniform(0, 50, (3, 4)).cumsum(axis=1)
        found.append(
            {
                "model": "teacher",
                "image_id": f"{number:03d}",
                "boxes_xyxy": np.vstack([boxes + noise, false]).ravel(),
                "scores": random.uniform(0.05, 1, count + 3),
                "class_ids": np.concatenate([labels, random.integers(0, len(CLASSES), 3)]),
            }
        )
    return pa.Table.from_pylist(truth, ANNOTATED), pa.Table.from_pylist(found, PREDICTIONS)


def repeat_images(table: pa.Table, counts: NDArray[np.int64]) -> pa.Table:
    """Each image as often as ``counts`` says; the copies' scores differ by a hair, so that no order is left open."""
    rows = []
    for row, count in zip(table.to_pylist(), counts, strict=True):
        for copy in range(count):
            scores = {"scores": [score - copy * 1e-5 for score in row["scores"]]} if "scores" in row else {}
            rows.append({**row, **scores, "image_id": f"{row['image_id']}-{copy}"})
    return pa.Table.from_pylist(rows, table.schema)


def class_ap(truth: pa.Table, found: pa.Table, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP50:95 by class in percent, with each image as often as ``counts`` says."""
    return 100 * average_precisions(match_detections(truth, found, len(CLASSES)), counts[None])[0].mean(axis=1)


def as_dict(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in zip(CLASSES, values, strict=True)}


def test_with_every_image_once_it_is_the_coco_map() -> None:
    truth, found = random_detections(3.0)
    ap = class_ap(truth, found, np.ones(IMAGES, dtype=np.int64))
    expected = coco_map(truth, found, CLASSES)
    assert as_dict(ap) == pytest.approx(expected["per_class"], abs=1e-9)
    assert mean_over_classes(ap) == pytest.approx(expected["mAP"], abs=1e-9)
    assert 5 < expected["mAP"] < 60  # neither blind nor perfect, or the comparison would say little


def test_an_image_drawn_twice_is_as_if_it_were_there_twice() -> None:
    truth, found = random_detections(3.0)
    counts = np.random.default_rng(1).integers(0, 3, IMAGES)
    ap = class_ap(truth, found, counts)
    expected = coco_map(repeat_images(truth, counts), repeat_images(found, counts), CLASSES)
    assert as_dict(ap) == pytest.approx(expected["per_class"], abs=0.5)


def test_no_boxes_at_all_is_zero_not_an_error() -> None:
    truth, found = random_detections(3.0)
    ap = class_ap(truth, found.slice(0, 0), np.ones(IMAGES, dtype=np.int64))
    assert as_dict(ap) == {"a": 0.0, "b": 0.0, "c": 0.0, "never there": None}


def test_a_model_is_as_good_as_itself_in_every_sample() -> None:
    truth, found = random_detections(3.0)
    comparison = compare_models(truth, found, found, classes=CLASSES, samples=20, seed=3)
    assert not comparison.map_differences.any()
    assert not np.nan_to_num(comparison.ap_differences).any()


def test_a_better_model_is_better_in_nearly_every_sample_and_the_seed_decides() -> None:
    truth, good = random_detections(1.0)
    _, poor = random_detections(6.0)
    runs = [compare_models(truth, good, poor, classes=CLASSES, samples=50, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].candidate_map > runs[0].champion_map
    assert (runs[0].map_differences > 0).mean() > 0.95
    assert runs[0].map_differences.tolist() == runs[1].map_differences.tolist() != runs[2].map_differences.tolist()


def test_models_drawn_one_by_one_are_drawn_alike() -> None:
    truth, good = random_detections(1.0)
    _, poor = random_detections(6.0)
    together = compare_models(truth, good, poor, classes=CLASSES, samples=30, seed=5).map_differences
    one, two = (bootstrap_map(truth, found, classes=CLASSES, samples=30, seed=5) for found in (good, poor))
    np.testing.assert_allclose(one - two, together)
    assert np.ptp(one) > 0
