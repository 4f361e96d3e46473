"""Finish times in the future, from a clock that is wrong: no work is lost, and none has priority for years."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from flows.annotation.validation import ValidationResult, validate_batch
from tasks.data.schemas import LabeledImage
from tests.flows.annotation.validation.factories import COLLECTED_AT, IMAGE, make_annotation, make_box, make_context

NEXT_DAY = COLLECTED_AT + timedelta(days=1)
IN_TEN_YEARS = "2036-03-02T00:00:00+00:00"


def validate(
    *annotations: dict[str, Any], collected_at: datetime = COLLECTED_AT, existing: Sequence[LabeledImage] = ()
) -> ValidationResult:
    return validate_batch(annotations, make_context(collected_at=collected_at), {IMAGE: existing})


def future_annotation(**changes: Any) -> dict[str, Any]:
    return make_annotation(finished_at=IN_TEN_YEARS, **changes)


@pytest.mark.parametrize(("minutes", "is_used"), [(0, True), (10, True), (11, False)])
def test_a_clock_may_be_a_little_ahead(minutes: int, is_used: bool) -> None:
    reported = (COLLECTED_AT + timedelta(minutes=minutes)).isoformat()
    result = validate(make_annotation(finished_at=reported))
    (label,) = result.primary
    assert label.finished_at == (reported if is_used else COLLECTED_AT.isoformat())
    assert label.reported_finished_at == (None if is_used else reported)
    assert [rejection.kind for rejection in result.rejections] == ([] if is_used else ["note"])


def test_a_time_in_the_future_is_replaced_and_noted() -> None:
    result = validate(future_annotation())
    (label,) = result.primary
    assert label.boxes
    (note,) = result.rejections
    assert f"finished_at is '{IN_TEN_YEARS}', expected a time in the past" in note.quarantined.reason


def test_the_note_is_equal_in_every_collection() -> None:
    (label,) = validate(future_annotation()).primary
    for existing in ([], [label]):
        assert (
            validate(future_annotation(), collected_at=NEXT_DAY, existing=existing).rejections
            == validate(future_annotation()).rejections
        )


def test_a_later_annotation_has_priority_over_one_with_a_time_in_the_future() -> None:
    (first,) = validate(future_annotation()).primary
    later = make_annotation(annotator="bob", finished_at=(COLLECTED_AT + timedelta(hours=9)).isoformat())
    result = validate(future_annotation(), later, collected_at=NEXT_DAY, existing=[first])
    assert [label.annotator for label in result.primary] == ["bob"]
    assert result.secondary == ()


@pytest.mark.parametrize("at", [NEXT_DAY, datetime.fromisoformat("2036-03-03T00:00:00+00:00")])
def test_an_imported_label_keeps_its_time_when_the_reported_one_has_passed(at: datetime) -> None:
    """Some tools keep every version and return the old one each time."""
    wrong, right = future_annotation(boxes=[make_box(1, 1, 9, 9)]), make_annotation(boxes=[make_box(2, 2, 9, 9)])
    right["finished_at"] = (COLLECTED_AT + timedelta(hours=9)).isoformat()
    (first,) = validate(wrong).primary
    (corrected,) = validate(wrong, right, collected_at=NEXT_DAY, existing=[first]).primary
    assert corrected.boxes[0].xyxy_px[0] == 2
    again = validate(wrong, right, collected_at=at, existing=[first, corrected])
    assert (again.primary, again.secondary) == ((), ())


def test_an_annotation_has_one_note_with_all_its_texts() -> None:
    twice = future_annotation(boxes=[make_box(1, 1, 41, 41), make_box(1, 1, 41, 41)])
    later = make_annotation(finished_at="2036-03-02T00:00:01+00:00", boxes=[make_box(2, 2, 9, 9)])
    reasons = {
        str(rejection.raw_annotation["finished_at"]): rejection.quarantined.reason
        for rejection in validate(twice, later, collected_at=datetime.fromisoformat(IN_TEN_YEARS)).rejections
    }
    assert list(reasons) == [IN_TEN_YEARS]
    assert "1 duplicate box left out" in reasons[IN_TEN_YEARS]
    assert "the annotator changed it at 2036-03-02T00:00:01+00:00" in reasons[IN_TEN_YEARS]
