"""Every average precision against pycocotools itself: ties, crowds, sizes, more detections than count."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.bench.evaluation import coco_documents, pycocotools_precision, random_tables
from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.average_precision import average_precisions
from tasks.evaluation.coco_map import coco_map
from tasks.evaluation.coco_matching import ALL_AREAS, AREA_RANGES_PX2, match_detections

CLASSES = 2
TRUTH_SCHEMA = pa.schema(
    [*(field for field in ANNOTATED if field.name != "is_crowd"), ("is_crowd", pa.list_(pa.bool_()))]
)


def own_precisions(
    truth: pa.Table, predictions: pa.Table, num_classes: int, max_detections: int
) -> NDArray[np.float64]:
    """Mean over recalls, (4 areas, K, T)."""
    once = np.ones((1, truth.num_rows), dtype=np.int64)
    return np.stack(
        [
            average_precisions(
                match_detections(
                    truth, predictions, num_classes, area_range_px2=area_range_px2, max_detections=max_detections
                ),
                once,
            )[0]
            for area_range_px2 in (ALL_AREAS, *AREA_RANGES_PX2.values())
        ]
    )


def reference_precisions(truth: pa.Table, predictions: pa.Table, num_classes: int) -> NDArray[np.float64]:
    """The same by pycocotools with at most 1, 10 and 100 detections, (3, 4, K, T)."""
    precision = pycocotools_precision(*coco_documents(truth, predictions, num_classes))  # T, 101, K, 4, 3
    precision[precision == -1] = np.nan
    return precision.mean(axis=1).transpose(3, 2, 1, 0)


def assert_same(truth: pa.Table, predictions: pa.Table, num_classes: int) -> None:
    expected = reference_precisions(truth, predictions, num_classes)
    for limit, by_area in zip((1, 10, 100), expected, strict=True):
        np.testing.assert_allclose(own_precisions(truth, predictions, num_classes, limit), by_area, rtol=0, atol=1e-11)


@st.composite
def images(draw: st.DrawFn) -> tuple[pa.Table, pa.Table]:
    """Corners on a coarse grid and few scores, so that equal IoU, IoU on a threshold and equal scores are common."""
    side = st.sampled_from([12.0, 18.0, 24.0, 40.0, 100.0])
    corner = st.integers(0, 3).map(lambda step: 6.0 * step)
    box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], corner, corner, side, side)
    label = st.integers(0, CLASSES - 1)
    truth, predictions = [], []
    for number in range(draw(st.integers(1, 3))):
        objects = draw(st.lists(st.tuples(box, label, st.booleans()), max_size=5))
        found = draw(st.lists(st.tuples(box, label, st.sampled_from([0.2, 0.5, 0.9])), max_size=8))
        image = {"image_id": f"{number:016x}", "uri": "", "width_px": 200, "height_px": 200, "batch": -1}
        truth.append(
            {
                **image,
                "boxes_xyxy": np.array([entry[0] for entry in objects]).ravel(),
                "class_ids": [entry[1] for entry in objects],
                "is_crowd": [entry[2] for entry in objects],
            }
        )
        predictions.append(
            {
                "model": "teacher",
                "image_id": image["image_id"],
                "boxes_xyxy": np.array([entry[0] for entry in found]).ravel(),
                "class_ids": [entry[1] for entry in found],
                "scores": [entry[2] for entry in found],
            }
        )
    return pa.Table.from_pylist(truth, TRUTH_SCHEMA), pa.Table.from_pylist(predictions, PREDICTIONS)


@settings(max_examples=60, deadline=None)
@given(images())
def test_few_boxes_with_every_kind_of_tie(tables: tuple[pa.Table, pa.Table]) -> None:
    truth, predictions = tables
    if not sum(map(len, predictions["scores"].to_pylist())):
        assert not np.nan_to_num(
            own_precisions(truth, predictions, CLASSES, 100)
        ).any()  # pycocotools refuses no results
        return
    assert_same(truth, predictions, CLASSES)


def test_many_boxes_with_crowds() -> None:
    truth, predictions = random_tables(num_images=150, num_detections=120, num_classes=5, seed=3, crowd_frac=0.15)
    assert_same(truth, predictions, 5)
    once = own_precisions(truth, predictions, 5, 100)
    metrics = coco_map(truth, predictions, [str(number) for number in range(5)])
    found = [metrics["mAP"], metrics["AP_small"], metrics["AP_medium"], metrics["AP_large"]]
    assert found == pytest.approx((100 * once.mean(axis=(1, 2))).tolist(), abs=1e-9)
    assert 1 < metrics["mAP"] < 90


def test_a_detection_in_a_crowd_is_no_false_alarm() -> None:
    crowd = [0.0, 0.0, 100.0, 100.0]
    inside, alone = [10.0, 10.0, 30.0, 30.0], [120.0, 120.0, 160.0, 160.0]
    image = {"image_id": "0" * 16, "uri": "", "width_px": 200, "height_px": 200, "batch": -1}
    row = {**image, "boxes_xyxy": [*crowd, *alone], "class_ids": [0, 0]}
    found = {
        "model": "teacher", "image_id": "0" * 16, "boxes_xyxy": [*inside, *inside, *alone], "scores": [0.9, 0.8, 0.7],
        "class_ids": [0, 0, 0],
    }  # fmt: skip
    predictions = pa.Table.from_pylist([found], PREDICTIONS)
    with_crowd = pa.Table.from_pylist([{**row, "is_crowd": [True, False]}], TRUTH_SCHEMA)
    assert coco_map(with_crowd, predictions, ["a"])["mAP"] == pytest.approx(100.0)
    # As an object of its own the crowd is missed, and what lies inside is false: one of two found, the third of three.
    without = pa.Table.from_pylist([{**row, "is_crowd": None}], TRUTH_SCHEMA)
    assert coco_map(without, predictions, ["a"])["mAP"] == pytest.approx(100 * 51 / 101 / 3)


def test_a_prediction_of_an_unknown_image_is_refused() -> None:
    truth, predictions = random_tables(2, 5, 2, seed=0)
    with pytest.raises(ValueError, match="image_id is 0000000000000001, expected an image of the validation set"):
        match_detections(truth.slice(0, 1), predictions, 2)


def test_blocks_of_pairs_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predictions = random_tables(20, 60, 3, seed=1)
    whole = own_precisions(truth, predictions, 3, 100)
    monkeypatch.setattr("tasks.evaluation.coco_matching._PAIRS_PER_BLOCK", 50)
    monkeypatch.setattr("tasks.evaluation.average_precision._ENTRIES_PER_BLOCK", 50)
    np.testing.assert_array_equal(own_precisions(truth, predictions, 3, 100), whole)
