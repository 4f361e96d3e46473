"""VOC AP against the devkit's code as Detectron2 carries it, and on cases known by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_eval

from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.voc_map import area_under_envelope, eleven_point_average, voc_map

CLASSES = ["a", "b"]
_OBJECT = """<object><name>{name}</name><pose>x</pose><truncated>0</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def random_tables(seed: int) -> tuple[pa.Table, pa.Table]:
    """20 images with objects of both classes, some difficult; detections near them and elsewhere, no equal scores."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(20):
        count = int(rng.integers(0, 5))
        corner = rng.integers(1, 60, (count, 2))
        boxes = np.hstack([corner, corner + rng.integers(5, 40, (count, 2))]).astype(float)
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 4, (2 * count, 4)).round()
        extra_corner = rng.integers(1, 60, (3, 2)).astype(float)
        extra = np.hstack([extra_corner, extra_corner + 20])
        detections = np.concatenate([near, extra])
        detections[:, 2:] = np.maximum(detections[:, 2:], detections[:, :2])
        classes, name = rng.integers(0, 2, count), f"{number:016x}"
        truth.append(
            {
                "image_id": name, "uri": "", "width_px": 100, "height_px": 100, "batch": -1,
                "boxes_xyxy": boxes.ravel().tolist(), "class_ids": classes.tolist(),
                "is_crowd": (rng.random(count) < 0.2).tolist(),
            }
        )  # fmt: skip
        predicted = np.concatenate([np.repeat(classes, 2), rng.integers(0, 2, 3)])
        found.append(
            {
                "model": "teacher", "image_id": name, "boxes_xyxy": detections.ravel().tolist(),
                "scores": rng.permutation(1000)[: len(detections)] / 1000 + number * 1e-5,
                "class_ids": predicted.tolist(),
            }
        )  # fmt: skip
    return pa.Table.from_pylist(truth, ANNOTATED), pa.Table.from_pylist(found, PREDICTIONS)


def devkit_ap(truth: pa.Table, predictions: pa.Table, index: int, folder: Path, *, eleven_points: bool) -> float:
    """Write the devkit's files and run its code."""
    folder.mkdir()
    for row in truth.to_pylist():
        boxes = np.array(row["boxes_xyxy"], dtype=int).reshape(-1, 4)
        objects = [
            _OBJECT.format(*box, name=CLASSES[class_id], difficult=int(crowd))
            for box, class_id, crowd in zip(boxes, row["class_ids"], row["is_crowd"], strict=True)
        ]
        (folder / f"{row['image_id']}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    lines = []
    for row in predictions.to_pylist():
        boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
        for box, score, class_id in zip(boxes, row["scores"], row["class_ids"], strict=True):
            if class_id == index:
                lines.append(" ".join([row["image_id"], repr(float(score)), *(repr(float(value)) for value in box)]))
    (folder / "found.txt").write_text("\n".join(lines))
    (folder / "images.txt").write_text("\n".join(truth["image_id"].to_pylist()))
    files = (str(folder / "found.txt"), str(folder / "{}.xml"), str(folder / "images.txt"))
    return 100 * float(voc_eval(*files, CLASSES[index], use_07_metric=eleven_points)[2])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eleven_points", [True, False])
def test_it_agrees_with_the_devkit(seed: int, eleven_points: bool, tmp_path: Path) -> None:
    truth, predictions = random_tables(seed)
    expected = {
        name: devkit_ap(truth, predictions, index, tmp_path / name, eleven_points=eleven_points)
        for index, name in enumerate(CLASSES)
    }
    found = voc_map(truth, predictions, CLASSES, eleven_points=eleven_points)
    assert found["per_class"] == pytest.approx(expected, abs=1e-9)
    assert found["mAP"] == pytest.approx(np.mean(list(expected.values())))
    assert 10 < min(expected.values()) < max(expected.values()) < 95


def test_averages_known_by_hand() -> None:
    recall, precision = np.array([0.25, 0.5, 0.5, 0.75]), np.array([1.0, 1.0, 2 / 3, 0.75])
    # recall 0 to 0.5: precision 1 (6 of 11 points), up to 0.75: 0.75 (0.6 and 0.7), then 0
    assert eleven_point_average(recall, precision) == pytest.approx((6 + 2 * 0.75) / 11)
    assert area_under_envelope(recall, precision) == pytest.approx(0.5 + 0.25 * 0.75)
    assert area_under_envelope(np.zeros(0), np.zeros(0)) == 0


def test_a_class_without_an_object_has_no_ap() -> None:
    truth, predictions = random_tables(0)
    found = voc_map(truth, predictions, [*CLASSES, "c"], eleven_points=False)
    assert found["per_class"]["c"] is None
    nothing = voc_map(truth.slice(0, 0), predictions.slice(0, 0), CLASSES, eleven_points=False)
    assert nothing == {"mAP": None, "per_class": {"a": None, "b": None}}
