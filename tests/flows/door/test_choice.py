"""Which of several answers counts."""

from collections.abc import Sequence
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from flows.labels.door.choice import choose, newest_of_each, source_of
from tasks.contracts import Box, LabeledImage

IMAGE = "a" * 16


def label(annotator: str, minute: int, *x: float, status: str = "labeled", offered_in: int = 2) -> LabeledImage:
    boxes = tuple(Box(category="cat", xyxy_px=(left, 0, left + 9, 9)) for left in x) if status == "labeled" else ()
    return LabeledImage.model_validate(
        {
            "image_id": IMAGE,
            "status": status,
            "boxes": boxes,
            "annotator": annotator,
            "finished_at": f"2026-03-01T10:{minute:02d}:00+00:00",
            "seconds_spent": 3.0,
            "offered_in": offered_in,
        }
    )


def of(known: Sequence[LabeledImage]) -> dict[str, list[LabeledImage]]:
    return {IMAGE: list(known)}


def test_the_answer_finished_last_counts_and_the_others_are_kept() -> None:
    first, second, third = label("ann", 1, 1.0), label("bob", 5, 2.0), label("eve", 3, 3.0)
    for answers in permutations([first, second, third]):
        assert choose(answers, {}) == ((second,), (first, third))


def test_an_answer_counts_before_a_skip_however_late() -> None:
    drawn, skip = label("ann", 1, 1.0), label("bob", 9, status="skipped")
    assert choose([drawn, skip], {}) == ((drawn,), (skip,))
    assert choose([skip], of([drawn])) == ((), (skip,))
    assert choose([drawn], of([skip])) == ((drawn,), ())


def test_times_with_different_zones_are_compared_as_times() -> None:
    early = label("ann", 1, 1.0).model_copy(update={"finished_at": "2026-03-01T11:30:00+02:00"})
    late = label("bob", 1, 2.0)
    assert choose([early, late], {})[0] == (late,)


def test_what_is_known_is_no_news_even_with_another_time() -> None:
    known = label("ann", 1, 1.0)
    assert choose([known], of([known])) == ((), ())
    assert choose([label("ann", 7, 1.0)], of([known])) == ((), ())


def test_a_changed_answer_counts_from_now_on_and_changed_back_too() -> None:
    first, changed = label("ann", 1, 1.0), label("ann", 2, 2.0)
    assert choose([changed], of([first])) == ((changed,), ())
    back = label("ann", 3, 1.0)
    assert choose([back], of([first, changed])) == ((back,), ())


def test_a_change_counts_even_where_the_tool_keeps_the_old_time() -> None:
    first, changed = label("ann", 5, 1.0), label("ann", 5, 2.0)
    assert choose([changed], of([first])) == ((changed,), ())


def test_an_older_answer_that_comes_late_does_not_undo_newer_work() -> None:
    newer, older = label("ann", 9, 1.0, offered_in=3), label("bob", 1, 2.0)
    assert choose([older], of([newer])) == ((), (older,))


def test_who_takes_an_answer_back_lets_that_of_another_count_again() -> None:
    bob, ann = label("bob", 1, 1.0), label("ann", 2, 2.0)
    skip = label("ann", 3, status="skipped")
    assert choose([skip], of([bob, ann])) == ((bob,), (skip,))


def test_of_one_person_only_the_last_answer_stands() -> None:
    first, last, other = label("ann", 1, 1.0), label("ann", 2, 2.0), label("bob", 1, 3.0)
    for answers in permutations([first, last, other]):
        assert {source_of(one): one for one in newest_of_each(answers)} == {
            source_of(last): last,
            source_of(other): other,
        }


answers = st.builds(
    label,
    st.sampled_from(["ann", "bob", "eve"]),
    st.integers(0, 9),
    st.integers(0, 3).map(float),
    status=st.sampled_from(["labeled", "empty", "skipped"]),
    offered_in=st.integers(1, 2),
)


@given(st.lists(st.lists(answers, max_size=5), max_size=5))
def test_whatever_comes_in_which_order_nothing_is_lost_or_taken_twice(nights: list[list[LabeledImage]]) -> None:
    known: list[LabeledImage] = []
    for night in nights:
        current = newest_of_each(night)
        images, others = choose(current, of(known))
        assert (images, others) == choose(list(reversed(current)), of(known))
        assert len(images) <= 1
        known += [*others, *images]
        assert choose(current, of(known)) == ((), ())
        standing = {source_of(old): old for old in known}
        for one in current:
            assert (standing[source_of(one)].status, standing[source_of(one)].boxes) == (one.status, one.boxes)
