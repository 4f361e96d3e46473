from pathlib import Path

import pytest

from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.providers.oracle import OracleProvider
from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.schemas import AnnotationTask, Box, Prediction
from tasks.params.annotation import AnnotatorModelParams
from tasks.runtime.errors import UserError

CLASSES = ("cat", "dog")
ANNOTATOR = AnnotatorModelParams(
    seconds_per_image=8.0,
    seconds_per_drawn_box=25.0,
    seconds_per_kept_box=1.5,
    seconds_per_moved_box=10.0,
    seconds_per_deleted_box=2.5,
    seconds_per_class_change=3.0,
    keep_iou=0.8,
    log_std=0.0,
)
SEED = 3
PREDRAWN = {
    "full": (
        Prediction(category="dog", xyxy_px=(1, 2, 3, 4), score=0.9),  # as the truth has it: kept
        Prediction(category="cat", xyxy_px=(0, 0, 2, 1), score=0.5),  # of nothing: deleted
    )
}


@pytest.fixture(autouse=True)
def manifest(tmp_path: Path) -> None:
    """The tasks as they were handed out."""
    tasks = [
        AnnotationTask(
            image_id=name,
            uri=f"{name}.png",
            width_px=9,
            height_px=9,
            rank=rank,
            reason="",
            uncertainty=0.5,
            predictions=PREDRAWN.get(name, ()),
            model_digest="m",
        )
        for rank, name in enumerate(("full", "bare", "unknown"))
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(task.model_dump_json() + "\n" for task in tasks))


@pytest.fixture
def oracle(tmp_path: Path) -> Path:
    path = tmp_path / "oracle.parquet"
    boxes = (Box(category="dog", xyxy_px=(1, 2, 3, 4)), Box(category="cat", xyxy_px=(5, 6, 7, 8)))
    region = (Box(category="dog", xyxy_px=(0, 0, 9, 9)),)
    images = [
        AnnotatedImage(f"{name}", f"{name}.png", 9, 9, found, -1, crowd_regions)
        for name, found, crowd_regions in (("full", boxes, ()), ("bare", (), ()), ("crowd", (), region))
    ]
    write_annotated(path, images, CLASSES)
    return path


def delivery(folder: Path, *image_ids: str) -> AnnotationBatch:
    return AnnotationBatch(1, "key", folder, image_ids, "2026-03-01T10:00:00+00:00", "delivered", "key")


def test_the_oracle_returns_ground_truth_with_its_annotation_time(tmp_path: Path, oracle: Path) -> None:
    provider = OracleProvider(oracle, CLASSES, ANNOTATOR, SEED)
    full, bare, unknown = provider.collect(delivery(tmp_path, "full", "bare", "unknown"))
    assert full["status"] == "labeled"
    assert [(box["category"], list(box["xyxy_px"])) for box in full["boxes"]] == [
        ("dog", [1, 2, 3, 4]),
        ("cat", [5, 6, 7, 8]),
    ]
    # opened 8, kept 1.5, deleted 2.5, drawn 25
    assert (full["seconds_spent"], full["finished_at"]) == (37.0, "2026-03-01T10:00:00+00:00")
    assert (bare["status"], bare["boxes"], bare["seconds_spent"]) == ("empty", [], 8.0)
    assert (unknown["status"], unknown["seconds_spent"]) == ("skipped", 0.0)


def test_crowd_regions_of_the_ground_truth_are_returned_as_such(tmp_path: Path, oracle: Path) -> None:
    (crowd,) = OracleProvider(oracle, CLASSES, ANNOTATOR, SEED).collect(delivery(tmp_path, "crowd"))
    assert (crowd["status"], [box["is_crowd"] for box in crowd["boxes"]]) == ("labeled", [True])
    assert crowd["seconds_spent"] > 0


def test_the_same_delivery_always_returns_the_same(tmp_path: Path, oracle: Path) -> None:
    provider = OracleProvider(oracle, CLASSES, ANNOTATOR.model_copy(update={"log_std": 0.4}), SEED)
    both, full = delivery(tmp_path, "full", "bare"), delivery(tmp_path, "full")
    first = provider.collect(both)
    provider.withdraw(both, ["full"])
    assert provider.deliver(full) == provider.deliver(full) == "key"
    assert provider.collect(both) == first
    assert provider.status(both).finished == 2
    assert first[0]["seconds_spent"] != 37.0


def test_classes_in_another_order_keep_their_names(tmp_path: Path, oracle: Path) -> None:
    (full,) = OracleProvider(oracle, ("dog", "cat"), ANNOTATOR, SEED).collect(delivery(tmp_path, "full"))
    assert [box["category"] for box in full["boxes"]] == ["dog", "cat"]


def test_a_missing_oracle_is_refused_with_the_command_that_creates_it(tmp_path: Path) -> None:
    provider = OracleProvider(tmp_path / "none.parquet", CLASSES, ANNOTATOR, SEED)
    offered = delivery(tmp_path, "a")
    for call in (provider.check, lambda: provider.deliver(offered), lambda: provider.collect(offered)):
        with pytest.raises(UserError, match="gleaner init --oracle"):
            call()
