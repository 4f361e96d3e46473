"""Which annotations are accepted, and that every one becomes a label or a rejection."""

import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation import validation
from flows.annotation.annotation_rules import annotation_digest, is_identical
from flows.annotation.validation import ValidationResult, validate_batch
from tasks.data.schemas import LabeledImage
from tests.flows.annotation.validation.factories import (
    HEIGHT,
    IMAGE,
    WIDTH,
    make_annotation,
    make_box,
    make_context,
    make_task,
)


def validate(*annotations: dict[str, Any], existing: dict[str, list[LabeledImage]] | None = None) -> ValidationResult:
    return validate_batch(annotations, make_context(), existing or {})


def test_an_answer_is_looked_for_among_its_annotators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of answers to one image, returned again each night, are not compared each with each."""
    compared = 0

    def counted(existing: LabeledImage, raw: dict[str, Any], batch: int) -> bool:
        nonlocal compared
        compared += 1
        return is_identical(existing, raw, batch)

    monkeypatch.setattr(validation, "is_identical", counted)
    answers = [make_annotation(annotator=f"ann-{number:04d}") for number in range(1000)]
    first = validate(*answers)
    stored = [*first.primary, *first.secondary]
    assert len(stored) == 1000
    again = validate(*answers, existing={IMAGE: stored})
    assert (again.primary, again.secondary, again.rejections) == ((), (), ())
    assert compared == 1000


def test_a_valid_annotation_becomes_a_label() -> None:
    result = validate(make_annotation())
    assert result.rejections == ()
    (image,) = result.primary
    assert image.boxes[0].xyxy_px == (10, 10, 30, 40)
    assert (image.status, image.annotator, image.seconds_spent, image.offered_batch) == ("labeled", "ann", 12.5, 3)


def test_crowd_regions_are_kept_beside_the_boxes() -> None:
    region, box = make_box(0, 0, 60, 70, is_crowd=True), make_box(0, 0, 60, 70)  # as large: still no duplicate
    raw = make_annotation(boxes=[region, box])
    (image,) = validate(raw).primary
    assert ([found.xyxy_px for found in image.boxes], len(image.crowd_regions)) == ([(0, 0, 60, 70)], 1)
    again = validate(raw, existing={image.image_id: [image]})
    assert (again.primary, again.secondary, again.rejections) == ((), (), ())
    changed = validate(make_annotation(boxes=[box]), existing={image.image_id: [image]})
    assert len(changed.primary) + len(changed.secondary) == 1  # the region was taken away
    (alone,) = validate(make_annotation(boxes=[region])).primary
    assert (alone.status, alone.boxes, len(alone.crowd_regions)) == ("labeled", (), 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": "c" * 16}, "image_id is .*expected one of this batch"),
        ({"image_id": None}, "image_id is None, expected one of this batch"),
        ({"image_id": ["a" * 16]}, "image_id is .*expected one of this batch"),
        ({"image_sha256": "f" * 64}, "image_sha256 is ffffffffffffffff.*expected that of the pool's image"),
        ({"image_sha256": "a" * 16}, "image_sha256 is .*expected 64 hex digits"),
        ({"image_sha256": 7}, "image_sha256 is 7, expected 64 hex digits"),
        ({"boxes": [make_box(1, 1, 5, 5, rotation_deg=12.5)]}, "rotation_deg of a box of cat is 12.5, expected 0"),
        ({"boxes": [make_box(1, 1, 5, 5, rotation_deg="left")]}, "rotation_deg of a box of cat is 'left'"),
        ({"boxes": [make_box(1, 1, 5, 5, shape="polygon")]}, "shape of an object of 'cat' is a polygon"),
        ({"boxes": [make_box(1, 1, 5, 5, shape="blob")]}, "shape of an object of 'cat' is 'blob'"),
        (
            {"boxes": [make_box(1, 1, 5, 5, is_crowd="yes")]},
            "is_crowd of a box of cat is 'yes', expected true or false",
        ),
        ({"boxes": [make_box(1, 1, 5, 99, is_crowd=True)]}, "inside the image of 100 x 80 px"),
        ({"boxes": [make_box(1, 1, 5, 5, shape=["box"])]}, r"shape of an object of 'cat' is \['box'\]"),
        ({"image_size_px": [80, 64]}, "size of the labeled image is 80 x 64 px, expected 100 x 80 px"),
        ({"image_size_px": [80, 100]}, "size of the labeled image is 80 x 100 px.*EXIF"),
        ({"image_size_px": 100}, "image_size_px is 100, expected width and height"),
        ({"boxes": [make_box(1, 1, 5, 2.5)]}, "4 x 1.5 px inside the image, expected sides of at least 2 px"),
        ({"boxes": [make_box(98.5, 1, 101, 20)]}, "1.5 x 19 px inside the image, expected sides of at least 2 px"),
        ({"boxes": [make_box(1, 1, 5, 5, category="cow")]}, r"class is 'cow', expected one of \['cat', 'dog'\]"),
        ({"boxes": [make_box(1, 1, 5, 5, category=["cat"])]}, "class is"),
        ({"boxes": [make_box(90, 10, 103, 40)]}, "inside the image of 100 x 80 px"),
        ({"boxes": [make_box(-3, 10, 30, 40)]}, "inside the image"),
        ({"boxes": [make_box(10, 10, 10, 40)]}, "has no area"),
        ({"boxes": [make_box(30, 10, 10, 40)]}, "has no area"),
        ({"boxes": [make_box(10, 10, math.nan, 40)]}, "finite numbers"),
        ({"boxes": [make_box(10, 10, 20)]}, "expected four numbers"),
        ({"boxes": [make_box(10, 10, "wide", 40)]}, "expected four numbers"),
        ({"boxes": [{"category": "cat"}]}, "expected four numbers"),
        ({"boxes": ["cat"]}, "expected category and xyxy_px"),
        ({"boxes": None}, "boxes is None, expected a list"),
        ({"boxes": []}, "'labeled' with 0 boxes"),
        ({"status": "empty"}, "'empty' with 1 boxes"),
        ({"status": "done"}, "status is 'done'"),
        ({"annotator": None}, "annotator is None, expected a name"),
        ({"annotator": " "}, "annotator is ' ', expected a name"),
        ({"boxes": [make_box(10, 10, 10**400, 40)]}, "expected four numbers"),
        ({"finished_at": "yesterday"}, "expected ISO 8601"),
        ({"finished_at": None}, "expected ISO 8601"),
        ({"finished_at": "2026-03-01T10:00:00"}, "expected a time zone"),
        ({"seconds_spent": -1}, "seconds_spent is -1"),
        ({"seconds_spent": math.nan}, "seconds_spent is nan"),
        ({"seconds_spent": "long"}, "seconds_spent is 'long'"),
        ({"seconds_spent": 1e22}, "seconds_spent is 1e.22, expected a number from 0 to 2592000"),
        ({"seconds_spent": 10**5000}, "seconds_spent is a number of thousands of digits"),
        ({"annotator": "a" * 201}, "expected at most 200 printable characters"),
        ({"annotator": "a\x1b[2J"}, "expected at most 200 printable characters"),
        ({"annotator": "\ud800x"}, "expected at most 200 printable characters"),
        ({"finished_at": "0001-01-01T00:00:00+10:00"}, "expected a year from 1990 on"),
        ({"finished_at": "9999-12-31T23:00:00-10:00"}, "expected a year from 1990 on"),
        ({"boxes": [make_box(10, 10, 30, 40)] * 5001}, "the number of boxes is 5001"),
    ],
)
def test_an_invalid_annotation_is_rejected_and_the_others_are_accepted(changes: dict[str, Any], reason: str) -> None:
    other = make_annotation(image_id="b" * 16)
    result = validate(make_annotation(**changes), other)
    assert [image.image_id for image in result.primary] == ["b" * 16]
    (rejection,) = result.rejections
    assert re.search(reason, rejection.quarantined.reason)


def test_one_invalid_box_rejects_the_whole_image() -> None:
    result = validate(make_annotation(boxes=[make_box(10, 10, 30, 40), make_box(5, 5, 5, 9)]))
    assert result.primary == ()
    assert len(result.rejections) == 1


def test_a_corner_a_pixel_outside_is_clipped() -> None:
    (image,) = validate(make_annotation(boxes=[make_box(-1, 0, WIDTH + 1, HEIGHT)])).primary
    assert image.boxes[0].xyxy_px == (0, 0, WIDTH, HEIGHT)


def test_a_duplicate_box_is_left_out_and_noted() -> None:
    twice = [
        make_box(1, 1, 41, 41),
        make_box(1, 1, 41, 40),
        make_box(1, 1, 41, 41, category="dog"),
        make_box(1, 1, 41, 30),
    ]
    result = validate(make_annotation(boxes=twice))
    assert [(b.category, b.xyxy_px[3]) for b in result.primary[0].boxes] == [("cat", 41), ("dog", 41), ("cat", 30)]
    (note,) = result.rejections
    assert note.kind == "note"
    assert note.quarantined.reason == "1 duplicate box left out (same class, IoU above 0.9)"


def test_the_label_holds_the_preannotations_of_its_task() -> None:
    (image,) = validate_batch([make_annotation()], make_context(make_task("a" * 16, 0.4, 0.9)), {}).primary
    assert image.preannotations is not None
    assert [(found.category, found.xyxy_px) for found in image.preannotations] == [
        ("cat", (0, 1, 9, 9)),
        ("cat", (10, 1, 19, 9)),
    ]
    assert (
        validate(make_annotation(image_sha256="a" * 64, boxes=[make_box(1, 1, 5, 5, rotation_deg=0.0)])).rejections
        == ()
    )


def test_a_skipped_image_has_no_boxes() -> None:
    (image,) = validate(make_annotation(status="skipped", boxes=[make_box(1, 1, 5, 500)])).primary
    assert (image.status, image.boxes) == ("skipped", ())


def test_an_empty_image_is_a_label() -> None:
    (image,) = validate(make_annotation(status="empty", boxes=[])).primary
    assert (image.status, image.boxes) == ("empty", ())


CONFIDENT_SCORES = (0.99, 0.97, 0.95)


@pytest.mark.parametrize(
    ("scores", "trusted", "suspicious"),
    [
        (CONFIDENT_SCORES, True, True),
        (CONFIDENT_SCORES, False, False),
        ((0.99, 0.97, 0.94), True, False),
        ((), True, False),
    ],
)
def test_empty_where_an_accurate_teacher_is_confident_is_suspicious(
    scores: tuple[float, ...], trusted: bool, suspicious: bool
) -> None:
    empty = make_annotation(status="empty", boxes=[])
    result = validate_batch([empty], make_context(make_task("a" * 16, *scores), is_teacher_trusted=trusted), {})
    assert len(result.primary) == (not suspicious)
    if suspicious:
        (rejection,) = result.rejections
        assert rejection.kind == "suspicious"
        assert "'empty' where the teacher detected 3 boxes" in rejection.quarantined.reason


@pytest.mark.parametrize(("boxes", "suspicious"), [(20, False), (21, True)])
def test_far_more_boxes_than_on_any_preannotated_image_are_suspicious(boxes: int, suspicious: bool) -> None:
    many = make_annotation(boxes=[make_box(n, n, n + 20, n + 20) for n in range(0, 3 * boxes, 3)])
    wide = [
        task.model_copy(update={"width_px": 500, "height_px": 500})
        for task in (make_task("a" * 16), make_task("b" * 16, 0.5, 0.5))
    ]
    result = validate_batch([many], make_context(*wide), {})
    assert [rejection.kind for rejection in result.rejections] == ["suspicious"] * suspicious
    assert len(validate_batch([many], make_context(*wide, is_teacher_trusted=False), {}).primary) == 1


def test_an_approved_annotation_is_accepted() -> None:
    empty = make_annotation(status="empty", boxes=[])
    approved = frozenset([annotation_digest(3, empty)])
    assert (
        len(
            validate_batch([empty], make_context(make_task("a" * 16, *CONFIDENT_SCORES), approved=approved), {}).primary
        )
        == 1
    )
    by_another = {**empty, "annotator": "bob"}
    context = make_context(make_task("a" * 16, *CONFIDENT_SCORES), approved=approved)
    assert validate_batch([by_another], context, {}).primary == ()


valid_boxes = st.fixed_dictionaries({"category": st.just("cat"), "xyxy_px": st.just([1, 1, 9, 9])})
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
                "boxes": st.lists(valid_boxes, max_size=3) | anything,
                "annotator": st.sampled_from(["ann", "bob"]) | anything,
                "finished_at": st.sampled_from(["2026-03-01T10:00:00+01:00", "2026-03-01T10:00:01+01:00"]) | anything,
                "seconds_spent": anything,
            },
        ),
        max_size=4,
    )
)
def test_every_annotation_is_a_label_or_a_rejection(annotations: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(annotations)
    result = validate(*annotations)
    assert repr(before) == repr(annotations)
    ids = [image.image_id for image in result.primary]
    assert ids == sorted(set(ids))
    ends = {annotation_digest(3, rejection.raw_annotation) for rejection in result.rejections}
    labels = {(label.image_id, label.annotator, label.status) for label in (*result.primary, *result.secondary)}
    for one in annotations:
        assert annotation_digest(3, one) in ends or (one["image_id"], one["annotator"], one["status"]) in labels
    for image in (*result.primary, *result.secondary):
        assert (image.status == "labeled") == bool(image.boxes)
        for drawn in image.boxes:
            x1, y1, x2, y2 = drawn.xyxy_px
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
