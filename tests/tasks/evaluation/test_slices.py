"""mAP by slices of the images: who is in which slice, and that each slice is evaluated as if it were alone."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.schemas import ANNOTATED, PREDICTIONS
from tasks.evaluation.coco_map import coco_map
from tasks.evaluation.slices import MAX_SOURCES, ImageTraits, image_slices, mean_luma, slice_metrics

CLASSES = ["a", "b"]
BOX = [10.0, 10, 50, 50]


def truth_table(*images: dict[str, Any]) -> pa.Table:
    default = {"uri": "data/images/x.png", "width_px": 100, "height_px": 100, "boxes_xyxy": BOX, "class_ids": [0]}
    rows = [{"batch": -1, **default, "image_id": f"{n:016x}", **image} for n, image in enumerate(images)]
    return pa.Table.from_pylist(rows, ANNOTATED)


def traits_of(truth: pa.Table, values: list[tuple[Any, ...]]) -> dict[str, ImageTraits]:
    return {
        image_id: ImageTraits(*value) for image_id, value in zip(truth["image_id"].to_pylist(), values, strict=True)
    }


def test_images_are_sliced_by_size_brightness_source_and_time() -> None:
    truth = truth_table(
        {"width_px": 10, "uri": "s3://bucket/north/1.jpg"},
        {"width_px": 20, "uri": "s3://bucket/south/2.jpg"},
        {"width_px": 30, "uri": "data/images/3.jpg"},
    )
    assert image_slices(truth, traits_of(truth, [(200.0, 0), (30.0, 23), (90.0, None)])) == {
        "size": ["small", "medium", "large"],
        "brightness": ["bright", "dark", "medium"],
        "source": ["s3://bucket/north", "s3://bucket/south", "campaign"],
        "time": ["00 to 06", "18 to 24", "unknown"],
    }


def test_images_that_were_copied_belong_to_the_folder_they_came_from() -> None:
    truth = truth_table(*({"uri": f"data/images/{n}.jpg"} for n in range(4)), {"uri": "s3://bucket/north/1.jpg"})
    names = ["day/cam 1/a.jpg", "day/cam 2/a.jpg", "b.jpg", "", "other/c.jpg"]
    sources = image_slices(truth, traits_of(truth, [(0.0, None, name) for name in names]))["source"]
    assert sources == ["day/cam 1", "day/cam 2", "campaign", "campaign", "s3://bucket/north"]


def test_what_does_not_tell_images_apart_is_left_out() -> None:
    truth = truth_table({}, {}, {})
    assert image_slices(truth, traits_of(truth, [(7.0, None)] * 3)) == {}
    assert slice_metrics(truth, PREDICTIONS.empty_table(), CLASSES, traits_of(truth, [(7.0, None)] * 3)) == {}


def test_small_sources_share_a_slice_where_there_are_many() -> None:
    uris = [f"s3://bucket/{folder:02d}/{n}.jpg" for folder in range(MAX_SOURCES + 3) for n in range(1 + (folder > 2))]
    truth = truth_table(*({"uri": uri} for uri in uris))
    sources = image_slices(truth, traits_of(truth, [(0.0, None)] * len(uris)))["source"]
    assert len(set(sources)) == MAX_SOURCES + 1
    assert sources[:4] == ["other sources"] * 3 + ["s3://bucket/03"]


def test_a_slice_has_the_map_of_its_images_alone_and_an_interval_around_it() -> None:
    """24 images in two sources; the detector finds every object of one and about half of the other's."""
    random = np.random.default_rng(1)
    images = [
        {"uri": f"s3://bucket/{('a', 'b')[n % 2]}/{n}.jpg", "class_ids": [n % 3 % 2]}
        for n in range(24)
    ]  # fmt: skip
    truth = truth_table(*images)
    predictions = pa.Table.from_pylist(
        [
            {
                "model": "teacher", "image_id": image_id, "boxes_xyxy": BOX, "scores": [float(random.random())],
                "class_ids": [images[n]["class_ids"][0] if n % 2 == 0 or n % 4 == 1 else 1 - images[n]["class_ids"][0]],
            }
            for n, image_id in enumerate(truth["image_id"].to_pylist())
        ],
        PREDICTIONS,
    )  # fmt: skip
    found = slice_metrics(truth, predictions, CLASSES, traits_of(truth, [(0.0, None)] * 24))["source"]
    assert list(found) == ["s3://bucket/a", "s3://bucket/b"]
    for position, metrics in enumerate(found.values()):
        members = np.arange(position, 24, 2)
        alone = coco_map(truth.take(members), predictions.take(members), CLASSES)
        assert metrics["mAP"] == pytest.approx(alone["mAP"], abs=1e-9)
        assert (metrics["images"], metrics["objects"]) == (12, 12)
    perfect, half = found.values()
    assert (perfect["mAP_low"], perfect["mAP"], perfect["mAP_high"]) == (100, 100, 100)
    assert half["mAP_low"] < half["mAP"] < half["mAP_high"] < 100  # type: ignore[operator]


def test_a_slice_without_an_object_has_no_map() -> None:
    truth = truth_table({"uri": "s3://b/a/1.jpg"}, {"uri": "s3://b/c/2.jpg", "boxes_xyxy": [], "class_ids": []})
    found = slice_metrics(truth, PREDICTIONS.empty_table(), CLASSES, traits_of(truth, [(0.0, None)] * 2))["source"]
    assert found["s3://b/a"] == {"images": 1, "objects": 1, "mAP": 0, "mAP_low": 0, "mAP_high": 0}
    assert found["s3://b/c"] == {"images": 1, "objects": 0, "mAP": None, "mAP_low": None, "mAP_high": None}


def test_luma_weighs_green_most() -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, :2, 1] = 200
    assert mean_luma(pixels) == pytest.approx(0.587 * 100)
    assert mean_luma(np.full((3, 3, 3), 255, dtype=np.uint8)) == pytest.approx(255)
