import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.door import Admitted, admit, write_refusals
from tasks.contracts import HandoffTask
from tasks.paths import Workspace

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 100, 80


def task(image_id: str) -> HandoffTask:
    return HandoffTask(
        image_id=image_id,
        uri=f"data/images/{image_id}.png",
        width_px=WIDTH,
        height_px=HEIGHT,
        rank=1,
        reason="test",
        uncertainty=0.5,
        predictions=(),
        model_digest="d",
    )


OFFERED = [task("a" * 16), task("b" * 16)]


def answer(**changes: Any) -> dict[str, Any]:
    good = {
        "image_id": "a" * 16,
        "status": "labeled",
        "boxes": [{"category": "cat", "xyxy_px": [10, 10, 30, 40]}],
        "annotator": "ann",
        "finished_at": "2026-03-01T10:00:00+01:00",
        "seconds_spent": 12.5,
    }
    return {**good, **changes}


def box(*corners: Any, category: Any = "cat") -> dict[str, Any]:
    return {"category": category, "xyxy_px": list(corners)}


def through(*answers: dict[str, Any], known: tuple[str, ...] = ()) -> Admitted:
    return admit(answers, batch=3, offered=OFFERED, classes=CLASSES, known=known)


def test_a_good_answer_passes_unchanged() -> None:
    admitted = through(answer())
    assert admitted.refusals == ()
    (image,) = admitted.images
    assert image.boxes[0].xyxy_px == (10, 10, 30, 40)
    assert (image.status, image.annotator, image.seconds_spent, image.offered_in) == ("labeled", "ann", 12.5, 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": "c" * 16}, "image_id is .*expected one of this batch"),
        ({"image_id": None}, "image_id is 'None', expected one of this batch"),
        ({"boxes": [box(1, 1, 5, 5, category="cow")]}, r"class is 'cow', expected one of \['cat', 'dog'\]"),
        ({"boxes": [box(1, 1, 5, 5, category=["cat"])]}, "class is"),
        ({"boxes": [box(90, 10, 103, 40)]}, "inside the image of 100 x 80 px"),
        ({"boxes": [box(-3, 10, 30, 40)]}, "inside the image"),
        ({"boxes": [box(10, 10, 10, 40)]}, "has no area"),
        ({"boxes": [box(30, 10, 10, 40)]}, "has no area"),
        ({"boxes": [box(10, 10, math.nan, 40)]}, "finite numbers"),
        ({"boxes": [box(10, 10, 20)]}, "expected four numbers"),
        ({"boxes": [box(10, 10, "wide", 40)]}, "expected four numbers"),
        ({"boxes": [{"category": "cat"}]}, "expected four numbers"),
        ({"boxes": ["cat"]}, "expected category and xyxy_px"),
        ({"boxes": None}, "boxes is None, expected a list"),
        ({"boxes": []}, "'labeled' with 0 boxes"),
        ({"status": "empty"}, "'empty' with 1 boxes"),
        ({"status": "done"}, "status is 'done'"),
        ({"annotator": None}, "annotator is None"),
        ({"finished_at": "yesterday"}, "expected ISO 8601"),
        ({"finished_at": None}, "expected ISO 8601"),
        ({"finished_at": "2026-03-01T10:00:00"}, "expected a time zone"),
        ({"seconds_spent": -1}, "seconds_spent is -1"),
        ({"seconds_spent": math.nan}, "seconds_spent is nan"),
        ({"seconds_spent": "long"}, "seconds_spent is 'long'"),
    ],
)
def test_a_bad_answer_is_refused_with_its_reason_and_the_others_pass(changes: dict[str, Any], reason: str) -> None:
    other = answer(image_id="b" * 16)
    admitted = through(answer(**changes), other)
    assert [image.image_id for image in admitted.images] == ["b" * 16]
    (refusal,) = admitted.refusals
    assert re.search(reason, refusal.quarantined.reason)


def test_one_bad_box_refuses_the_whole_image() -> None:
    admitted = through(answer(boxes=[box(10, 10, 30, 40), box(5, 5, 5, 9)]))
    assert admitted.images == ()
    assert len(admitted.refusals) == 1


def test_a_corner_a_pixel_outside_is_clipped() -> None:
    (image,) = through(answer(boxes=[box(-1, 0, WIDTH + 1, HEIGHT)])).images
    assert image.boxes[0].xyxy_px == (0, 0, WIDTH, HEIGHT)


def test_the_same_image_twice_counts_once_and_is_told() -> None:
    admitted = through(answer(), answer(boxes=[box(1, 1, 9, 9)]))
    assert admitted.images[0].boxes[0].xyxy_px == (10, 10, 30, 40)
    assert [refusal.quarantined.reason for refusal in admitted.refusals] == [
        "the image came back twice, expected it once"
    ]


def test_an_image_with_labels_already_is_refused() -> None:
    admitted = through(answer(), known=("a" * 16,))
    assert admitted.images == ()
    assert "has labels already" in admitted.refusals[0].quarantined.reason


def test_a_box_drawn_twice_is_kept_once_and_told() -> None:
    admitted = through(answer(boxes=[box(1, 1, 9, 9), box(1, 1, 9, 9), box(1, 1, 9, 9, category="dog")]))
    assert [b.category for b in admitted.images[0].boxes] == ["cat", "dog"]
    assert admitted.refusals[0].quarantined.reason.startswith("1 boxes are drawn twice")


def test_a_skipped_image_loses_half_drawn_boxes() -> None:
    (image,) = through(answer(status="skipped", boxes=[box(1, 1, 5, 500)])).images
    assert (image.status, image.boxes) == ("skipped", ())


def test_an_empty_image_is_an_answer() -> None:
    (image,) = through(answer(status="empty", boxes=[])).images
    assert (image.status, image.boxes) == ("empty", ())


def test_refusals_become_one_file_each_however_often_they_are_written(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    bad = answer(image_id="../../etc/passwd", boxes=[box(math.nan, math.inf, 1, 1)], extra=object())
    refusals = through(bad, answer(boxes=[])).refusals
    write_refusals(workspace, 3, refusals)
    write_refusals(workspace, 3, refusals)
    found = sorted(workspace.quarantine.iterdir())
    assert len(found) == 2
    contents = [json.loads(path.read_text()) for path in found]
    assert {content["batch"] for content in contents} == {3}
    assert any(content["returned"]["image_id"] == "../../etc/passwd" for content in contents)
    assert all({"where", "reason", "returned"} <= set(content) for content in contents)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "image_id": st.sampled_from(["a" * 16, "b" * 16, "c"]) | anything,
                "status": st.sampled_from(["labeled", "empty", "skipped"]) | anything,
                "boxes": st.lists(st.fixed_dictionaries({"category": st.just("cat"), "xyxy_px": anything})) | anything,
                "annotator": st.just("ann") | anything,
                "finished_at": st.just("2026-03-01T10:00:00+01:00") | anything,
                "seconds_spent": anything,
            },
        ),
        max_size=4,
    )
)
def test_whatever_comes_back_each_answer_is_a_label_or_a_refusal(answers: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(answers)
    admitted = through(*answers)
    doubled = sum("drawn twice" in refusal.quarantined.reason for refusal in admitted.refusals)
    assert len(admitted.images) + len(admitted.refusals) - doubled == len(answers)
    assert repr(before) == repr(answers)
    for image in admitted.images:
        assert (image.status == "labeled") == bool(image.boxes)
        for drawn in image.boxes:
            x1, y1, x2, y2 = drawn.xyxy_px
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
