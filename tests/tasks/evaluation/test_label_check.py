"""Labels to look at again: two teachers are asked where there are two, and the surest error comes first."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED, DETECTIONS, DETECTIONS_AT_SELECTION, with_class_names
from tasks.evaluation.label_check import MAX_LISTED, doubtful_labels
from tasks.storage import files

CLASSES = ["cat", "dog"]
BOX = [10.0, 10.0, 60.0, 60.0]


def detection(image_id: str, class_id: int, score: float) -> dict[str, Any]:
    values = {"boxes_xyxy": BOX, "scores": [score], "class_ids": [class_id], "class_probs": [0.5, 0.5, 0.0]}
    return {"image_id": image_id, "residual_mass": 0.0, **values}


def write(
    folder: Path, now: dict[str, tuple[int, float]], offered: dict[int, dict[str, tuple[int, float]]], stored: list[str]
) -> None:
    """Images with one labeled cat each; detections are class and score by image, at selection also by batch."""
    rows = [{"image_id": i, "boxes_xyxy": BOX, "class_ids": [0], "batch": 2, "width_px": 90} for i in now]
    files.write_table(folder / "labeled.parquet", pa.Table.from_pylist(rows, schema=ANNOTATED))
    found = [detection(image, *one) for image, one in now.items()]
    files.write_table(folder / "infer/labeled-000000.parquet", pa.Table.from_pylist(found, schema=DETECTIONS))
    for batch, detected in offered.items():
        found = [detection(image, *one) for image, one in detected.items()]
        schema = with_class_names(DETECTIONS_AT_SELECTION, stored)
        files.write_table(folder / f"frozen/batch-{batch:04d}.parquet", pa.Table.from_pylist(found, schema=schema))


def listed(folder: Path) -> list[tuple[str, float, str, bool]]:
    found = doubtful_labels(folder / "labeled.parquet", folder / "infer", folder / "frozen", CLASSES)
    return [(one.image_id, round(one.strength, 4), one.class_name, one.was_unseen) for one in found]


def test_two_teachers_are_averaged_and_the_last_offer_counts(tmp_path: Path) -> None:
    now = {"a": (0, 0.9), "b": (1, 0.5), "c": (1, 0.75)}
    write(tmp_path, now, {1: {"b": (0, 0.9)}, 2: {"a": (1, 0.5), "b": (1, 1.0)}}, CLASSES)
    assert listed(tmp_path) == [("b", 0.75, "dog", True), ("c", 0.75, "dog", False), ("a", 0.25, "dog", True)]


def test_detections_under_other_class_names_are_not_asked(tmp_path: Path) -> None:
    write(tmp_path, {"a": (0, 0.9)}, {1: {"a": (1, 1.0)}}, ["dog", "cat"])
    assert listed(tmp_path) == []


def test_the_list_is_bounded(tmp_path: Path) -> None:
    write(tmp_path, {f"{n:04d}": (1, 0.5) for n in range(MAX_LISTED + 5)}, {}, CLASSES)
    assert [one[0] for one in listed(tmp_path)] == [f"{n:04d}" for n in range(MAX_LISTED)]


def make_image(random: np.random.Generator) -> tuple[list[list[float]], list[int]]:
    """Two to six boxes of three classes on a grid, so that they do not touch."""
    cells = random.permutation(9)[: random.integers(2, 7)]
    boxes = [[100.0 * (c % 3) + 20, 100.0 * (c // 3) + 20, 100.0 * (c % 3) + 70, 100.0 * (c // 3) + 80] for c in cells]
    return boxes, random.integers(3, size=len(boxes)).tolist()


def detect(
    random: np.random.Generator, boxes: list[list[float]], ids: list[int]
) -> list[tuple[list[float], float, int]]:
    """A fair detector: a tenth missed, corners off by 4 px, some classes confused, a false box on every third image."""
    found = [
        ((np.array(box) + random.normal(0, 4, 4)).tolist(), float(random.beta(8, 2)), class_id)
        for box, class_id in zip(boxes, ids, strict=True)
        if random.random() > 0.1
    ]
    found += [(box, float(random.beta(2, 6)), int(random.integers(3))) for box, *_ in found if random.random() < 0.1]
    if random.random() < 1 / 3:
        x, y = random.uniform(0, 250, 2)
        found.append(([x, y, x + 50, y + 50], float(random.beta(2, 6)), int(random.integers(3))))
    return found


def plant(random: np.random.Generator, kind: str, boxes: list[list[float]], ids: list[int]) -> None:
    victim = int(random.integers(len(boxes)))
    if kind == "missing":
        del boxes[victim], ids[victim]
    elif kind == "misplaced":
        shift = random.choice([-1, 1], 2) * random.uniform(0.3, 0.5, 2) * (50, 60)
        boxes[victim] = (np.array(boxes[victim]) + np.tile(shift, 2)).tolist()
    else:
        ids[victim] = (ids[victim] + int(random.integers(1, 3))) % 3


@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_are_in_the_first_twentieth(tmp_path: Path, seed: int) -> None:
    """Ten errors of three kinds on 400 images: at least eight among the first twenty images."""
    random = np.random.default_rng(seed)
    labeled, detected, planted = [], [], {f"{number:03d}" for number in range(0, 400, 40)}
    for number in range(400):
        image_id = f"{number:03d}"
        boxes, ids = make_image(random)
        found = detect(random, boxes, ids)
        if image_id in planted:
            plant(random, ("missing", "misplaced", "swapped")[number // 40 % 3], boxes, ids)
        labeled.append({"image_id": image_id, "boxes_xyxy": np.ravel(boxes), "class_ids": ids, "batch": 0})
        detected.append(
            {
                "image_id": image_id,
                "boxes_xyxy": np.ravel([box for box, _, _ in found]),
                "scores": [score for _, score, _ in found],
                "class_ids": [class_id for _, _, class_id in found],
                "class_probs": [0.25] * 4 * len(found),
                "residual_mass": 0.0,
            }
        )
    files.write_table(tmp_path / "labeled.parquet", pa.Table.from_pylist(labeled, schema=ANNOTATED))
    files.write_table(tmp_path / "infer/labeled-000000.parquet", pa.Table.from_pylist(detected, schema=DETECTIONS))
    listed = doubtful_labels(tmp_path / "labeled.parquet", tmp_path / "infer", tmp_path / "none", ["a", "b", "c"])
    assert len(planted & {one.image_id for one in listed[:20]}) >= 8
