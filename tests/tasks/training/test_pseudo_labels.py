"""From stored detections and answers to thresholds by class, and to the reason why no image takes part."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data import schemas
from tasks.data.detection_outcomes import calibration_outcomes, returned_outcomes
from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.params import load_params
from tasks.params.training import SslParams
from tasks.storage import files
from tasks.training.pseudo_labels import assess_classes, known_outcomes, pseudo_label_summary, score_threshold

REPOSITORY = Path(__file__).parents[3]
CLASSES = ["disc", "square"]


def ssl(**changes: Any) -> SslParams:
    return load_params(REPOSITORY / "params.yaml").ssl.model_copy(update={"precision_batches": 2, **changes})


def detection(image_id: str, boxes: list[list[float]], scores: list[float], class_ids: list[int]) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "boxes_xyxy": np.array(boxes).ravel(),
        "scores": scores,
        "class_ids": class_ids,
        "class_probs": np.zeros(3 * len(scores), dtype=np.float16),
        "embedding": np.zeros(2, dtype=np.float16),
        "model_digest": "f" * 64,
        "residual_mass": 0.0,
    }


def answer(image_id: str, boxes: list[tuple[str, tuple[float, float, float, float]]], offered: int) -> LabeledImage:
    drawn = tuple(Box(category=name, xyxy_px=xyxy) for name, xyxy in boxes)
    return LabeledImage(
        image_id=image_id, status="labeled", boxes=drawn, annotator="a", finished_at="2026-01-01T00:00:00+00:00",
        seconds_spent=None, offered_batch=offered,
    )  # fmt: skip


def write_batch(folder: Path, number: int, images: list[LabeledImage], frozen: list[dict[str, Any]]) -> None:
    """Label batch ``number`` and the detections that were stored when it was offered; other class order then."""
    batch = LabelBatch(batch=number, provider="test", collected_at="2026-01-01T00:00:00+00:00", images=tuple(images))
    files.write_json(folder / "labels" / f"batch-{number:04d}.json", batch.model_dump(mode="json"))
    metrics = {"confidence": 0.0, "entropy": 0.0, "overlap": 0.0}
    schema = schemas.with_class_names(schemas.DETECTIONS_AT_SELECTION, ["square", "disc"])
    table = pa.Table.from_pylist([row | metrics for row in frozen], schema)
    files.write_table(folder / "frozen" / f"batch-{number:04d}.parquet", table)


def test_answers_that_came_back_are_compared_by_class_name(tmp_path: Path) -> None:
    here, there = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0)
    write_batch(tmp_path, 0, [answer("seed", [("disc", here)], 0)], [])
    old = [answer("old", [("disc", here)], 1)]
    write_batch(tmp_path, 1, old, [detection("old", [list(here)], [0.5], [1])])
    new = [answer("new", [("disc", here), ("square", there)], 2)]
    frozen = [
        detection("new", [list(here), list(there)], [0.9, 0.8], [1, 1]),
        detection("open", [list(here)], [1], [0]),
    ]
    write_batch(tmp_path, 2, new, frozen)
    rows = returned_outcomes(tmp_path / "labels", tmp_path / "frozen", 1).to_pylist()
    assert [(row["class_name"], round(row["score"], 3), row["is_right"]) for row in rows] == [
        ("disc", 0.9, True),
        ("disc", 0.8, False),  # a square is there
    ]
    assert len(returned_outcomes(tmp_path / "labels", tmp_path / "frozen", 2)) == 3


def test_calibration_images_give_outcomes_and_the_pool_none(tmp_path: Path) -> None:
    box = [0.0, 0.0, 10.0, 10.0]
    held = {"image_id": "held", "uri": "x", "width_px": 40, "height_px": 40, "boxes_xyxy": box, "class_ids": [1]}
    files.write_table(tmp_path / "calibration.parquet", pa.Table.from_pylist([held | {"batch": -1}], schemas.ANNOTATED))
    rows = [detection("held", [box, box], [0.9, 0.4], [1, 0]), detection("pool", [box], [0.9], [1])]
    files.write_table(tmp_path / "infer" / "shard-0000.parquet", pa.Table.from_pylist(rows, schemas.DETECTIONS))
    found = calibration_outcomes(tmp_path / "calibration.parquet", tmp_path / "infer", CLASSES)
    assert [(row["class_name"], row["is_right"]) for row in found.to_pylist()] == [("square", True), ("disc", False)]
    files.write_table(tmp_path / "calibration_outcomes.parquet", found)
    write_batch(tmp_path, 0, [answer("seed", [], 0)], [])
    assert known_outcomes(tmp_path, tmp_path / "labels", tmp_path / "frozen", 3).equals(found)


def test_detections_in_a_crowd_region_of_their_class_have_no_outcome(tmp_path: Path) -> None:
    box, inside, crowd = [0.0, 0.0, 10.0, 10.0], [22.0, 22.0, 28.0, 28.0], [20.0, 20.0, 40.0, 40.0]
    held = {"image_id": "held", "uri": "x", "width_px": 40, "height_px": 40, "batch": -1}
    held |= {"boxes_xyxy": [*box, *crowd], "class_ids": [1, 1], "is_crowd": [False, True]}
    files.write_table(tmp_path / "calibration.parquet", pa.Table.from_pylist([held], schemas.ANNOTATED))
    rows = [detection("held", [box, inside, inside], [0.9, 0.8, 0.4], [1, 1, 0])]
    files.write_table(tmp_path / "infer" / "shard-0000.parquet", pa.Table.from_pylist(rows, schemas.DETECTIONS))
    found = calibration_outcomes(tmp_path / "calibration.parquet", tmp_path / "infer", CLASSES)
    assert [(row["class_name"], row["is_right"]) for row in found.to_pylist()] == [("square", True), ("disc", False)]


def outcomes(shares: dict[str, tuple[float, float]], num: int = 30) -> pa.Table:
    """Detections of each class at one score, of which a share is right."""
    rows = [
        {"class_name": name, "score": score, "is_right": index < share * num}
        for name, (score, share) in shares.items()
        for index in range(num)
    ]
    return pa.Table.from_pylist(rows, schemas.OUTCOMES)


def test_thresholds_reach_the_trainer_by_class() -> None:
    settings = ssl(pseudo_label_threshold_mode="precision", pseudo_label_precision=0.75, pseudo_label_threshold=0.7)
    assessed = assess_classes(outcomes({"square": (0.25, 0.9)}), CLASSES, settings)
    assert score_threshold(assessed, settings).class_thresholds().tolist() == pytest.approx([0.7, 0.25])
    summary = pseudo_label_summary(assessed, settings, 10)
    assert summary["takes_part"]
    assert summary["classes"]["disc"] == {
        "threshold": 0.7, "is_measured": False, "num_terms": 0, "precision": None, "lower_bound": None,
        "takes_part": True,
    }  # fmt: skip
    assert summary["classes"]["square"]["precision"] == 0.9


def test_the_round_is_supervised_where_no_class_is_precise_enough() -> None:
    settings = ssl(min_precision=0.5, pseudo_label_threshold_mode="fixed")
    both = assess_classes(outcomes({"square": (0.9, 0.4), "disc": (0.9, 0.3)}), CLASSES, settings)
    found = pseudo_label_summary(both, settings, 10)
    assert (found["takes_part"], found["excluded_classes"]) == (False, ["disc", "square"])
    assert found["reason"] == "the measured precision of no class's pseudo-labels is high enough"
    one = pseudo_label_summary(assess_classes(outcomes({"square": (0.9, 0.4)}), CLASSES, settings), settings, 10)
    assert (one["takes_part"], one["excluded_classes"], one["reason"]) == (True, ["square"], "")
    off = ssl(min_precision=0.0, pseudo_label_threshold_mode="fixed")
    assert (
        pseudo_label_summary(assess_classes(outcomes({"square": (0.9, 0.0)}), CLASSES, off), off, 10)[
            "excluded_classes"
        ]
        == []
    )


def test_other_reasons_for_a_supervised_round() -> None:
    nothing = assess_classes(schemas.OUTCOMES.empty_table(), CLASSES, ssl())
    assert pseudo_label_summary(nothing, ssl(enabled=False), 10)["reason"] == "ssl.enabled is false"
    assert "no unlabeled image" in pseudo_label_summary(nothing, ssl(enabled=True), 0)["reason"]
