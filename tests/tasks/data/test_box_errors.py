"""The model of single boxes on reviewed images: built as image by image, cold start, and its share in score's table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectron_ext.box_error_model import Outcome, detection_outcomes, inverse_frequency_weights
from tasks.data import schemas
from tasks.data.box_errors import error_model_document, fit_error_model, labeled_detections
from tasks.data.dwa_samples import reviewed_batch_images
from tasks.params import StageParams, load_params
from tasks.score import score
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch

REPOSITORY = Path(__file__).parents[3]
CLASSES = ["a", "b"]


def detection_row(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Up to four boxes apart from each other; a low score is likely to be wrong."""
    count = int(rng.integers(0, 5))
    probs = np.zeros((count, 3))
    claimed = rng.integers(0, 2, count)
    scores = rng.uniform(0.3, 0.95, count)
    probs[np.arange(count), claimed], probs[:, 2] = scores, 1 - scores
    corner = np.arange(count)[:, None] * 100.0 + np.zeros((1, 2))
    return {
        "image_id": name,
        "boxes_xyxy": np.concatenate([corner, corner + 40], axis=1).ravel().tolist(),
        "scores": scores.tolist(),
        "class_ids": claimed.tolist(),
        "class_probs": probs.astype(np.float16).ravel(),
        "residual_mass": float(rng.uniform(0, 2)),
        "embedding": [0.0],
        "model_digest": "f",
    }


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """60 images offered and answered in batch 1, 20 pool images; a box is right in proportion to its score."""
    rng, rows, labels = np.random.default_rng(0), [], []
    for number in range(80):
        row = detection_row(rng, f"{number:03d}")
        rows.append(row)
        right = [i for i, s in enumerate(row["scores"]) if rng.random() < s]
        boxes = [(CLASSES[row["class_ids"][i]], tuple(row["boxes_xyxy"][4 * i : 4 * i + 4])) for i in right]
        boxes += [("b", (900.0, 900.0, 940.0, 940.0))] * int(rng.random() < row["residual_mass"] / 2)
        own = [{"category": name, "xyxy_px": xyxy} for name, xyxy in boxes]
        status = "labeled" if own else "empty"
        labels.append(make_label(row["image_id"], status=status, boxes=own))
    write_batch(tmp_path / "labels", 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path / "labels", 1, *labels[:60])
    frozen = [
        {**row, "confidence": rng.random(), "entropy": rng.random(), "overlap": rng.random()}
        | {"is_random_pick": number < 30, "num_candidates": 80}
        for number, row in enumerate(rows[:60])
    ]
    schema = schemas.with_class_names(schemas.DETECTIONS_AT_SELECTION, CLASSES)
    files.write_table(tmp_path / "frozen" / "batch-0000.parquet", schema.empty_table())
    files.write_table(tmp_path / "frozen" / "batch-0001.parquet", pa.Table.from_pylist(frozen, schema=schema))
    files.write_table(tmp_path / "infer" / "shard-000000.parquet", pa.Table.from_pylist(rows[60:], schemas.DETECTIONS))
    files.write_table(tmp_path / "calibration.parquet", schemas.ANNOTATED.empty_table())
    return tmp_path


def stage_params(**dwa: Any) -> StageParams:
    params = load_params(REPOSITORY / "params.yaml")
    changed = params.model_copy(update={"classes": CLASSES, "dwa": params.dwa.model_copy(update=dwa)})
    return StageParams(changed, ("seed", "classes", "scoring", "dwa"))


def test_outcomes_and_misses_are_those_of_each_image(campaign: Path) -> None:
    images = list(reviewed_batch_images(campaign / "labels", campaign / "frozen", CLASSES, 6))
    data, first = labeled_detections(images, 2), 0
    assert len(data) == 60
    assert data.is_random_P.sum() == 30
    for place, image in enumerate(images):
        found = image.found
        outcome, missed = detection_outcomes(
            found.boxes_xyxy, found.scores, found.class_ids, image.boxes_xyxy, image.class_ids
        )
        last = first + len(found.scores)
        assert data.outcome_B[first:last].tolist() == outcome.tolist()
        assert data.num_missed_PK[place].tolist() == [int((image.class_ids[missed] == c).sum()) for c in (0, 1)]
        assert data.mass_P2[place].tolist() == pytest.approx([found.residual_mass, found.scores.sum()])
        first = last
    assert {Outcome.RIGHT, Outcome.BACKGROUND} <= set(data.outcome_B.tolist())


def test_score_writes_the_value_of_the_fitted_model(campaign: Path) -> None:
    score(
        stage_params(),
        detections=campaign / "infer",
        calibration=campaign / "calibration.parquet",
        labels=campaign / "labels",
        detections_at_selection=campaign / "frozen",
        out=campaign / "score",
    )
    images = list(reviewed_batch_images(campaign / "labels", campaign / "frozen", CLASSES, 6))
    model = fit_error_model(images, campaign / "labels", CLASSES, 20, 3.0)
    assert model.boxes is not None
    rows = files.read_table(campaign / "score" / "scores.parquet", schemas.SCORES).to_pylist()
    num_labels = [sum(int((image.class_ids == c).sum()) for image in images) for c in (0, 1)]
    num_labels[0] += 1  # the seed's box
    assert model.class_weight_K.tolist() == pytest.approx(inverse_frequency_weights(np.array(num_labels), 3.0).tolist())
    stored = files.read_table(campaign / "infer" / "shard-000000.parquet", schemas.DETECTIONS).to_pylist()
    data_rows = [{**row, "score_row": own} for row, own in zip(stored, rows, strict=True)]
    a, b, c = model.misses.coefficients_3
    for row in data_rows:
        misses = a + b * row["residual_mass"] + c * sum(row["scores"])
        assert row["score_row"]["expected_misses"] == pytest.approx(misses, rel=1e-5)
        assert row["score_row"]["value"] >= misses * float(model.class_weight_K @ model.boxes.miss_frac_K) - 1e-6
    document = json.loads((campaign / "score" / "box_errors.json").read_text())
    assert document["num_images"] == 60
    assert document["calibration"]["auc"] > 0.6
    assert document["calibration"]["brier"] < document["calibration"]["brier_constant"]
    assert document["calibration"]["expected_misses"] == pytest.approx(document["num_missed"], rel=0.2)
    assert document["used"] == (
        document["calibration"]["spearman"]
        > document["calibration"]["spearman_rival"] + document["calibration"]["standard_error"]
    )
    assert document["used"]  # the rivals are drawn at random


def test_a_cold_start_gives_no_value_and_says_so(campaign: Path) -> None:
    images = list(reviewed_batch_images(campaign / "labels", campaign / "frozen", CLASSES, 6))[:19]
    model = fit_error_model(images, campaign / "labels", CLASSES, 20, 3.0)
    assert model.boxes is None
    document = error_model_document(model, {}, CLASSES, stage_params().dwa, 7)
    assert document["used"] is False
    assert document["reason"] == "cold start: 19 reviewed images, dwa.min_training_samples is 20"
