"""Which of several answers counts."""

from collections.abc import Sequence
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.validation.resolve_conflicts import annotator_key, latest_per_annotator, resolve_conflicts
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


def by_image(known: Sequence[LabeledImage]) -> dict[str, list[LabeledImage]]:
    return {IMAGE: list(known)}


def test_the_answer_finished_last_counts_and_the_others_are_kept() -> None:
    first, second, third = make_label("ann", 1, 1.0), make_label("bob", 5, 2.0), make_label("eve", 3, 3.0)
    for answers in permutations([first, second, third]):
        assert resolve_conflicts(answers, {}) == ((second,), (first, third))


def test_an_answer_counts_before_a_skip_however_late() -> None:
    drawn, skip = make_label("ann", 1, 1.0), make_label("bob", 9, status="skipped")
    assert resolve_conflicts([drawn, skip], {}) == ((drawn,), (skip,))
    assert resolve_conflicts([skip], by_image([drawn])) == ((), (skip,))
    assert resolve_conflicts([drawn], by_image([skip])) == ((drawn,), ())


def test_times_with_different_zones_are_compared_as_times() -> None:
    early = make_label("ann", 1, 1.0).model_copy(update={"finished_at": "2026-03-01T11:30:00+02:00"})
    late = make_label("bob", 1, 2.0)
    assert resolve_conflicts([early, late], {})[0] == (late,)


def test_what_is_known_is_no_news_even_with_another_time() -> None:
    known = make_label("ann", 1, 1.0)
    assert resolve_conflicts([known], by_image([known])) == ((), ())
    assert resolve_conflicts([make_label("ann", 7, 1.0)], by_image([known])) == ((), ())


def test_a_changed_answer_counts_from_now_on_and_changed_back_too() -> None:
    first, changed = make_label("ann", 1, 1.0), make_label("ann", 2, 2.0)
    assert resolve_conflicts([changed], by_image([first])) == ((changed,), ())
    back = make_label("ann", 3, 1.0)
    assert resolve_conflicts([back], by_image([first, changed])) == ((back,), ())


def test_a_change_counts_even_where_the_tool_keeps_the_old_time() -> None:
    first, changed = make_label("ann", 5, 1.0), make_label("ann", 5, 2.0)
    assert resolve_conflicts([changed], by_image([first])) == ((changed,), ())


def test_an_older_answer_that_comes_late_does_not_undo_newer_work() -> None:
    newer, older = make_label("ann", 9, 1.0, offered_batch=3), make_label("bob", 1, 2.0)
    assert resolve_conflicts([older], by_image([newer])) == ((), (older,))


def test_who_takes_an_answer_back_lets_that_of_another_count_again() -> None:
    bob, ann = make_label("bob", 1, 1.0), make_label("ann", 2, 2.0)
    skip = make_label("ann", 3, status="skipped")
    assert resolve_conflicts([skip], by_image([bob, ann])) == ((bob,), (skip,))


def test_of_one_person_only_the_last_answer_stands() -> None:
    first, last, other = make_label("ann", 1, 1.0), make_label("ann", 2, 2.0), make_label("bob", 1, 3.0)
    for answers in permutations([first, last, other]):
        assert {annotator_key(one): one for one in latest_per_annotator(answers)} == {
            annotator_key(last): last,
            annotator_key(other): other,
        }


answers = st.builds(
    make_label,
    st.sampled_from(["ann", "bob", "eve"]),
    st.integers(0, 9),
    st.integers(0, 3).map(float),
    status=st.sampled_from(["labeled", "empty", "skipped"]),
    offered_batch=st.integers(1, 2),
)


@given(st.lists(st.lists(answers, max_size=5), max_size=5))
def test_whatever_comes_in_which_order_nothing_is_lost_or_taken_twice(
    scripted_rounds: list[list[LabeledImage]],
) -> None:
    known: list[LabeledImage] = []
    for night in scripted_rounds:
        current = latest_per_annotator(night)
        images, others = resolve_conflicts(current, by_image(known))
        assert (images, others) == resolve_conflicts(list(reversed(current)), by_image(known))
        assert len(images) <= 1
        known += [*others, *images]
        assert resolve_conflicts(current, by_image(known)) == ((), ())
        standing = {annotator_key(old): old for old in known}
        for one in current:
            assert (standing[annotator_key(one)].status, standing[annotator_key(one)].boxes) == (one.status, one.boxes)
