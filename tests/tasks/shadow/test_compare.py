"""Which images of a stream are most worth a label, and why."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.schemas import DETECTIONS
from tasks.shadow.compare import COLUMNS, compare_stream, summary

CLASSES = ["cat", "dog"]


def detections(rows: list[dict[str, Any]]) -> pa.Table:
    full = [{field.name: row.get(field.name) for field in DETECTIONS} for row in rows]
    return pa.Table.from_pylist(full, DETECTIONS).select(list(COLUMNS))


def row(name: str, embedding: np.ndarray, boxes: float = 0.0, classes: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "image_id": name, "scores": [0.5, 0.25], "class_ids": [0, 1], "embedding": embedding.tolist(),
        "box_disagreement": boxes, "class_disagreement": classes, **more,
    }  # fmt: skip


@pytest.fixture
def pool() -> pa.Table:
    random = np.random.default_rng(0)
    return detections([row(f"pool{n}", random.normal(size=4) * [1, 1, 1, 0]) for n in range(60)])


@pytest.fixture
def alike(pool: pa.Table) -> np.ndarray:
    """The embedding of a pool image: nothing is nearer to the pool."""
    return np.array(pool["embedding"][0].as_py())


def test_disagreement_and_novelty_both_lead_and_the_reason_says_which(pool: pa.Table, alike: np.ndarray) -> None:
    stream = [row(f"calm{n}", alike) for n in range(8)]
    stream += [row("argued", alike, boxes=3.0, classes=1.0), row("foreign", np.array([0.0, 0.0, 0.0, 50.0]))]
    found = compare_stream(detections(stream), pool, CLASSES, seed=0)
    assert set(found.table["image_id"].head(2)) == {"argued", "foreign"}
    rows = found.table.set_index("image_id")
    assert rows["reason"]["argued"] == "the models disagree about 2.0 objects"
    assert rows["reason"]["foreign"].startswith("unlike the pool")
    assert (rows["priority"][[f"calm{n}" for n in range(8)]] == 0).all()
    assert rows["priority"]["argued"] == 1
    assert found.drift.num_unlike == 1


def test_models_that_agree_everywhere_give_no_reason_by_their_ranks(pool: pa.Table, alike: np.ndarray) -> None:
    found = compare_stream(detections([row(f"i{n}", alike) for n in range(5)]), pool, CLASSES, seed=0)
    assert (found.table["disagreement"] == 0).all()
    assert (found.table["priority"] == 0).all()
    assert summary(found)["mean_disagreement_objects"] == 0


def test_boxes_count_by_their_score(pool: pa.Table, alike: np.ndarray) -> None:
    stream = [row("a", alike, scores=[0.9, 0.3], class_ids=[1, 1]), row("b", alike, scores=[], class_ids=[])]
    found = compare_stream(detections(stream), pool, CLASSES, seed=0)
    assert found.boxes_by_class["cat"] == (pytest.approx(0.5), 0)
    assert found.boxes_by_class["dog"] == (pytest.approx(0.25), pytest.approx(0.6))


def test_an_empty_stream_is_a_result_too(pool: pa.Table) -> None:
    document = summary(compare_stream(detections([]), pool, CLASSES, seed=0))
    assert document["images"] == 0
    assert document["drift_p_value"] == 1
