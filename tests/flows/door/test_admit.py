"""What passes the door and what does not, and that every answer ends as the one or the other."""

import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.labels.door.admit import Admitted, admit
from flows.labels.door.refusal import answer_digest
from tasks.contracts import LabeledImage
from tests.flows.door.offers import HEIGHT, WIDTH, answer, box, offer, task


def through(*answers: dict[str, Any], known: dict[str, list[LabeledImage]] | None = None) -> Admitted:
    return admit(answers, offer(), known or {})


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
        ({"image_id": None}, "image_id is None, expected one of this batch"),
        ({"image_id": ["a" * 16]}, "image_id is .*expected one of this batch"),
        ({"image_sha256": "f" * 64}, "SHA-256 ffffffffffffffff.*expected those of the pool's image"),
        ({"image_sha256": "a" * 16}, "image_sha256 is .*expected 64 hex digits"),
        ({"image_sha256": 7}, "image_sha256 is 7, expected 64 hex digits"),
        ({"boxes": [box(1, 1, 5, 5, rotation_deg=12.5)]}, "rotation_deg of a box of cat is 12.5, expected 0"),
        ({"boxes": [box(1, 1, 5, 5, rotation_deg="left")]}, "rotation_deg of a box of cat is 'left'"),
        ({"boxes": [box(1, 1, 5, 2.5)]}, "4 x 1.5 px, expected sides of at least 2 px"),
        ({"boxes": [box(98.5, 1, 101, 20)]}, "1.5 x 19 px, expected sides of at least 2 px"),
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
        ({"annotator": None}, "annotator is None, expected who it was"),
        ({"annotator": " "}, "annotator is ' ', expected who it was"),
        ({"boxes": [box(10, 10, 10**400, 40)]}, "expected four numbers"),
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


def test_a_box_drawn_twice_is_kept_once_and_told() -> None:
    twice = [box(1, 1, 41, 41), box(1, 1, 41, 40), box(1, 1, 41, 41, category="dog"), box(1, 1, 41, 30)]
    admitted = through(answer(boxes=twice))
    assert [(b.category, b.xyxy_px[3]) for b in admitted.images[0].boxes] == [("cat", 41), ("dog", 41), ("cat", 30)]
    (note,) = admitted.refusals
    assert note.kind == "note"
    assert note.quarantined.reason.startswith("1 boxes are drawn twice (same class, IoU above 0.9)")


def test_the_label_says_what_was_predrawn_and_what_was_asked() -> None:
    (image,) = admit([answer()], offer(task("a" * 16, 0.4, 0.9)), {}).images
    assert image.predrawn is not None
    assert [(found.category, found.xyxy_px) for found in image.predrawn] == [
        ("cat", (0, 1, 9, 9)),
        ("cat", (10, 1, 19, 9)),
    ]
    assert through(answer(image_sha256="a" * 64, boxes=[box(1, 1, 5, 5, rotation_deg=0.0)])).refusals == ()


def test_a_skipped_image_loses_half_drawn_boxes() -> None:
    (image,) = through(answer(status="skipped", boxes=[box(1, 1, 5, 500)])).images
    assert (image.status, image.boxes) == ("skipped", ())


def test_an_empty_image_is_an_answer() -> None:
    (image,) = through(answer(status="empty", boxes=[])).images
    assert (image.status, image.boxes) == ("empty", ())


SURE = (0.99, 0.97, 0.95)


@pytest.mark.parametrize(
    ("scores", "trusted", "suspicious"),
    [(SURE, True, True), (SURE, False, False), ((0.99, 0.97, 0.94), True, False), ((), True, False)],
)
def test_empty_against_a_sure_and_proven_teacher_waits_for_a_person(
    scores: tuple[float, ...], trusted: bool, suspicious: bool
) -> None:
    empty = answer(status="empty", boxes=[])
    admitted = admit([empty], offer(task("a" * 16, *scores), trusted=trusted), {})
    assert len(admitted.images) == (not suspicious)
    if suspicious:
        (refusal,) = admitted.refusals
        assert refusal.kind == "suspicious"
        assert "'empty' where the teacher is very sure of 3 boxes" in refusal.quarantined.reason


@pytest.mark.parametrize(("boxes", "suspicious"), [(20, False), (21, True)])
def test_far_more_boxes_than_the_teacher_draws_anywhere_wait_for_a_person(boxes: int, suspicious: bool) -> None:
    many = answer(boxes=[box(n, n, n + 20, n + 20) for n in range(0, 3 * boxes, 3)])
    wide = [
        task.model_copy(update={"width_px": 500, "height_px": 500})
        for task in (task("a" * 16), task("b" * 16, 0.5, 0.5))
    ]
    admitted = admit([many], offer(*wide), {})
    assert [refusal.kind for refusal in admitted.refusals] == ["suspicious"] * suspicious
    assert len(admit([many], offer(*wide, trusted=False), {}).images) == 1


def test_what_a_person_confirmed_is_not_suspected_again() -> None:
    empty = answer(status="empty", boxes=[])
    confirmed = frozenset([answer_digest(3, empty)])
    assert len(admit([empty], offer(task("a" * 16, *SURE), confirmed=confirmed), {}).images) == 1
    another = {**empty, "annotator": "bob"}
    assert admit([another], offer(task("a" * 16, *SURE), confirmed=confirmed), {}).images == ()


boxes_drawn = st.fixed_dictionaries({"category": st.just("cat"), "xyxy_px": st.just([1, 1, 9, 9])})
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
                "boxes": st.lists(boxes_drawn, max_size=3) | anything,
                "annotator": st.sampled_from(["ann", "bob"]) | anything,
                "finished_at": st.sampled_from(["2026-03-01T10:00:00+01:00", "2026-03-01T10:00:01+01:00"]) | anything,
                "seconds_spent": anything,
            },
        ),
        max_size=4,
    )
)
def test_whatever_comes_back_each_answer_is_a_label_or_a_refusal(answers: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(answers)
    admitted = through(*answers)
    assert repr(before) == repr(answers)
    ids = [image.image_id for image in admitted.images]
    assert ids == sorted(set(ids))
    ends = {answer_digest(3, refusal.returned) for refusal in admitted.refusals}
    labels = {(label.image_id, label.annotator, label.status) for label in (*admitted.images, *admitted.others)}
    for one in answers:
        assert answer_digest(3, one) in ends or (one["image_id"], one["annotator"], one["status"]) in labels
    for image in (*admitted.images, *admitted.others):
        assert (image.status == "labeled") == bool(image.boxes)
        for drawn in image.boxes:
            x1, y1, x2, y2 = drawn.xyxy_px
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
