"""Label batches read together: what counts, what is history, what it cost."""

from pathlib import Path
from typing import Any

import pytest

from tasks.data.label_store import read_labels
from tasks.runtime.errors import UserError
from tasks.storage import files


def make_label(image_id: str, x2: float = 9, **changes: Any) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "status": "labeled",
        "boxes": [{"category": "a", "xyxy_px": [1, 1, x2, 9]}],
        "annotator": "ann",
        "finished_at": "2026-01-02T00:00:00+00:00",
        "seconds_spent": 60.0,
        "offered_batch": 1,
    } | changes


def write_batch(folder: Path, number: int, *images: dict[str, Any], **changes: Any) -> None:
    batch = {"batch": number, "provider": "test", "collected_at": "2026-01-02T00:00:00+00:00", "images": list(images)}
    files.write_json(folder / f"batch-{number:04d}.json", batch | changes)


def test_a_later_batch_supersedes_and_history_stays(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("x", 5))
    write_batch(tmp_path, 1, make_label("x", 7), other_annotations=[make_label("y", annotator="bob")], leased={"z": 1})
    store = read_labels(tmp_path)
    assert store.current["x"].label.boxes[0].xyxy_px[2] == 7
    assert [given.boxes[0].xyxy_px[2] for given in store.all_annotations["x"]] == [5, 7]
    assert "y" not in store.current
    assert [given.annotator for given in store.all_annotations["y"]] == ["bob"]
    assert store.leased == {"z": 1}


def test_only_the_newest_batch_says_what_is_leased(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("x"), leased={"z": 1})
    write_batch(tmp_path, 1, make_label("z"))
    assert read_labels(tmp_path).leased == {}


def test_the_time_of_a_changed_answer_includes_that_of_the_one_it_changes(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("x", seconds_spent=60.0))
    write_batch(
        tmp_path,
        1,
        make_label("x", 7, seconds_spent=90.0),
        other_annotations=[make_label("x", annotator="bob", seconds_spent=30.0)],
    )
    write_batch(tmp_path, 2, make_label("x", offered_batch=2, seconds_spent=60.0))
    assert read_labels(tmp_path).minutes_spent == 3.0


def test_an_image_twice_in_one_batch_is_refused(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("x"), make_label("x", 7))
    with pytest.raises(UserError, match="image x stands in it twice"):
        read_labels(tmp_path)


def checked(number: int, image_id: str = "x", x2: float = 9, **changes: Any) -> dict[str, Any]:
    """An answer to a label of batch 1 that was offered to be checked in batch ``number``."""
    return make_label(image_id, x2, **{"annotator": "checker", "offered_batch": number, "checks_batch": 1} | changes)


def test_a_check_supersedes_and_both_stay_with_their_authors(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path, 1, make_label("x"))
    write_batch(tmp_path, 2, checked(2, x2=7))
    store = read_labels(tmp_path)
    assert (store.current["x"].batch, store.current["x"].label.boxes[0].xyxy_px[2]) == (2, 7)
    assert store.current["x"].picked == store.all_annotations["x"][0]
    assert [(label.annotator, label.offered_batch) for label in store.all_annotations["x"]] == [
        ("ann", 1),
        ("checker", 2),
    ]
    assert store.checks == {"x": True}


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        ({}, False),
        ({"x2": 9.5}, False),  # rounded by the label tool
        ({"x2": 9.6}, True),
        ({"boxes": [{"category": "b", "xyxy_px": [1, 1, 9, 9]}]}, True),
        ({"boxes": [{"category": "a", "xyxy_px": [1, 1, 9, 9]}] * 2}, True),
        ({"boxes": [], "status": "empty"}, True),
    ],
)
def test_a_check_changes_a_label_where_boxes_differ(tmp_path: Path, change: dict[str, Any], is_changed: bool) -> None:
    write_batch(tmp_path, 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path, 1, make_label("x"))
    write_batch(tmp_path, 2, checked(2, **change))
    assert read_labels(tmp_path).checks == {"x": is_changed}


def test_a_check_that_does_not_count_keeps_what_an_earlier_one_changed(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path, 1, make_label("x"), make_label("y"))
    write_batch(tmp_path, 2, checked(2, x2=7), other_annotations=[checked(2, "y", status="skipped", boxes=[])])
    assert read_labels(tmp_path).checks == {"x": True, "y": False}
    write_batch(tmp_path, 3, make_label("z"), other_annotations=[checked(2, annotator="bob")])
    store = read_labels(tmp_path)
    assert store.checks == {"x": True, "y": False}
    assert store.current["y"].label.annotator == "ann"


def test_a_later_change_of_a_check_is_still_of_the_first_pick(tmp_path: Path) -> None:
    write_batch(tmp_path, 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path, 1, make_label("x"))
    write_batch(tmp_path, 2, checked(2, x2=7))
    write_batch(tmp_path, 3, checked(2, x2=6))
    answer = read_labels(tmp_path).current["x"]
    assert (answer.batch, answer.picked.offered_batch, answer.picked.annotator) == (3, 1, "ann")
