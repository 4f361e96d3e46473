"""Which of several labels of an image is used."""

from collections.abc import Sequence
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.validation import annotator_key, latest_per_annotator, resolve_conflicts
from tasks.data.schemas import Box, LabeledImage

IMAGE = "a" * 16


def make_label(annotator: str, minute: int, *x: float, status: str = "labeled", offered_batch: int = 2) -> LabeledImage:
    boxes = tuple(Box(category="cat", xyxy_px=(left, 0, left + 9, 9)) for left in x) if status == "labeled" else ()
    return LabeledImage.model_validate(
        {
            "image_id": IMAGE,
            "status": status,
            "boxes": boxes,
            "annotator": annotator,
            "finished_at": f"2026-03-01T10:{minute:02d}:00+00:00",
            "seconds_spent": 3.0,
            "offered_batch": offered_batch,
        }
    )


def by_image(existing: Sequence[LabeledImage]) -> dict[str, list[LabeledImage]]:
    return {IMAGE: list(existing)}


def test_the_label_finished_last_is_primary_and_the_others_are_secondary() -> None:
    first, second, third = make_label("ann", 1, 1.0), make_label("bob", 5, 2.0), make_label("eve", 3, 3.0)
    for labels in permutations([first, second, third]):
        assert resolve_conflicts(labels, {}) == ((second,), (first, third))


def test_a_label_has_priority_over_a_later_skip() -> None:
    drawn, skip = make_label("ann", 1, 1.0), make_label("bob", 9, status="skipped")
    assert resolve_conflicts([drawn, skip], {}) == ((drawn,), (skip,))
    assert resolve_conflicts([skip], by_image([drawn])) == ((), (skip,))
    assert resolve_conflicts([drawn], by_image([skip])) == ((drawn,), ())


def test_times_with_different_zones_are_compared_as_times() -> None:
    early = make_label("ann", 1, 1.0).model_copy(update={"finished_at": "2026-03-01T11:30:00+02:00"})
    late = make_label("bob", 1, 2.0)
    assert resolve_conflicts([early, late], {})[0] == (late,)


def test_an_existing_label_is_not_new_even_with_another_time() -> None:
    existing = make_label("ann", 1, 1.0)
    assert resolve_conflicts([existing], by_image([existing])) == ((), ())
    assert resolve_conflicts([make_label("ann", 7, 1.0)], by_image([existing])) == ((), ())


def test_a_changed_label_is_primary_and_so_is_one_changed_back() -> None:
    first, changed = make_label("ann", 1, 1.0), make_label("ann", 2, 2.0)
    assert resolve_conflicts([changed], by_image([first])) == ((changed,), ())
    back = make_label("ann", 3, 1.0)
    assert resolve_conflicts([back], by_image([first, changed])) == ((back,), ())


def test_a_changed_label_is_new_even_if_the_tool_keeps_the_old_time() -> None:
    first, changed = make_label("ann", 5, 1.0), make_label("ann", 5, 2.0)
    assert resolve_conflicts([changed], by_image([first])) == ((changed,), ())


def test_an_older_label_that_is_returned_late_is_secondary() -> None:
    newer, older = make_label("ann", 9, 1.0, offered_batch=3), make_label("bob", 1, 2.0)
    assert resolve_conflicts([older], by_image([newer])) == ((), (older,))


def test_a_label_changed_to_a_skip_makes_that_of_another_annotator_primary_again() -> None:
    bob, ann = make_label("bob", 1, 1.0), make_label("ann", 2, 2.0)
    skip = make_label("ann", 3, status="skipped")
    assert resolve_conflicts([skip], by_image([bob, ann])) == ((bob,), (skip,))


def test_the_last_label_of_each_annotator_is_kept() -> None:
    first, last, other = make_label("ann", 1, 1.0), make_label("ann", 2, 2.0), make_label("bob", 1, 3.0)
    for labels in permutations([first, last, other]):
        assert {annotator_key(one): one for one in latest_per_annotator(labels)} == {
            annotator_key(last): last,
            annotator_key(other): other,
        }


labels = st.builds(
    make_label,
    st.sampled_from(["ann", "bob", "eve"]),
    st.integers(0, 9),
    st.integers(0, 3).map(float),
    status=st.sampled_from(["labeled", "empty", "skipped"]),
    offered_batch=st.integers(1, 2),
)


@given(st.lists(st.lists(labels, max_size=5), max_size=5))
def test_in_any_order_no_label_is_lost_or_imported_twice(
    scripted_rounds: list[list[LabeledImage]],
) -> None:
    existing: list[LabeledImage] = []
    for round_labels in scripted_rounds:
        returned = latest_per_annotator(round_labels)
        images, others = resolve_conflicts(returned, by_image(existing))
        assert (images, others) == resolve_conflicts(list(reversed(returned)), by_image(existing))
        assert len(images) <= 1
        existing += [*others, *images]
        assert resolve_conflicts(returned, by_image(existing)) == ((), ())
        latest = {annotator_key(old): old for old in existing}
        for one in returned:
            assert (latest[annotator_key(one)].status, latest[annotator_key(one)].boxes) == (one.status, one.boxes)
