from pathlib import Path

import pytest

from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.providers.oracle import OracleProvider
from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.schemas import Box
from tasks.params import BudgetParams
from tasks.runtime.errors import UserError

CLASSES = ("cat", "dog")
BUDGET = BudgetParams(unit="images", amount=3.0, minutes_per_box=0.5, minutes_per_image=0.25, min_timed_annotations=20)


@pytest.fixture
def oracle(tmp_path: Path) -> Path:
    path = tmp_path / "oracle.parquet"
    boxes = (Box(category="dog", xyxy_px=(1, 2, 3, 4)), Box(category="cat", xyxy_px=(5, 6, 7, 8)))
    images = [
        AnnotatedImage(image_id=name, uri=f"{name}.png", width_px=9, height_px=9, boxes=found, batch=-1)
        for name, found in (("full", boxes), ("bare", ()))
    ]
    write_annotated(path, images, CLASSES)
    return path


def delivery(*image_ids: str) -> AnnotationBatch:
    return AnnotationBatch(1, "key", Path(), image_ids, "2026-03-01T10:00:00+00:00", "delivered", "key")


def test_the_oracle_returns_ground_truth_with_its_annotation_time(oracle: Path) -> None:
    provider = OracleProvider(oracle, CLASSES, BUDGET)
    full, bare, unknown = provider.collect(delivery("full", "bare", "unknown"))
    assert full["status"] == "labeled"
    assert [(box["category"], list(box["xyxy_px"])) for box in full["boxes"]] == [
        ("dog", [1, 2, 3, 4]),
        ("cat", [5, 6, 7, 8]),
    ]
    assert (full["seconds_spent"], full["finished_at"]) == (75.0, "2026-03-01T10:00:00+00:00")
    assert (bare["status"], bare["boxes"], bare["seconds_spent"]) == ("empty", [], 15.0)
    assert (unknown["status"], unknown["seconds_spent"]) == ("skipped", 0.0)


def test_the_same_delivery_always_returns_the_same(oracle: Path) -> None:
    provider = OracleProvider(oracle, CLASSES, BUDGET)
    first = provider.collect(delivery("full", "bare"))
    provider.withdraw(delivery("full", "bare"), ["full"])
    assert provider.deliver(delivery("full")) == provider.deliver(delivery("full")) == "key"
    assert provider.collect(delivery("full", "bare")) == first
    assert provider.status(delivery("full", "bare")).finished == 2


def test_classes_in_another_order_keep_their_names(oracle: Path) -> None:
    (full,) = OracleProvider(oracle, ("dog", "cat"), BUDGET).collect(delivery("full"))
    assert [box["category"] for box in full["boxes"]] == ["dog", "cat"]


def test_a_missing_oracle_is_refused_with_the_command_that_creates_it(tmp_path: Path) -> None:
    provider = OracleProvider(tmp_path / "none.parquet", CLASSES, BUDGET)
    for call in (provider.check, lambda: provider.deliver(delivery("a")), lambda: provider.collect(delivery("a"))):
        with pytest.raises(UserError, match="gleaner init --oracle"):
            call()
