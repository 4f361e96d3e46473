"""Answers from the future: a clock is wrong, and nobody's work is lost, or counts for years, because of it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from flows.annotation.validation.validate_batch import ValidationResult, validate_batch
from tasks.data.schemas import LabeledImage
from tests.flows.annotation.validation.offers import COLLECTED_AT, IMAGE, make_annotation, make_box, make_context

NEXT_DAY = COLLECTED_AT + timedelta(days=1)
IN_TEN_YEARS = "2036-03-02T00:00:00+00:00"


def validate(
    *answers: dict[str, Any], collected_at: datetime = COLLECTED_AT, known: Sequence[LabeledImage] = ()
) -> ValidationResult:
    return validate_batch(answers, make_context(collected_at=collected_at), {IMAGE: known})


def future_annotation(**changes: Any) -> dict[str, Any]:
    return make_annotation(finished_at=IN_TEN_YEARS, **changes)


@pytest.mark.parametrize(("minutes", "believed"), [(0, True), (10, True), (11, False)])
def test_a_clock_may_be_a_little_ahead(minutes: int, believed: bool) -> None:
    claimed = (COLLECTED_AT + timedelta(minutes=minutes)).isoformat()
    admitted = validate(make_annotation(finished_at=claimed))
    (label,) = admitted.primary
    assert label.finished_at == (claimed if believed else COLLECTED_AT.isoformat())
    assert label.reported_finished_at == (None if believed else claimed)
    assert [refusal.kind for refusal in admitted.rejections] == ([] if believed else ["note"])


def test_an_answer_from_the_future_is_taken_and_told() -> None:
    admitted = validate(future_annotation())
    (label,) = admitted.primary
    assert label.boxes
    (note,) = admitted.rejections
    assert f"finished_at is '{IN_TEN_YEARS}', expected a time that has come" in note.quarantined.reason


def test_the_note_says_the_same_every_night() -> None:
    (label,) = validate(future_annotation()).primary
    for known in ([], [label]):
        assert (
            validate(future_annotation(), collected_at=NEXT_DAY, known=known).rejections
            == validate(future_annotation()).rejections
        )


def test_who_answers_later_counts() -> None:
    (first,) = validate(future_annotation()).primary
    later = make_annotation(annotator="bob", finished_at=(COLLECTED_AT + timedelta(hours=9)).isoformat())
    admitted = validate(future_annotation(), later, collected_at=NEXT_DAY, known=[first])
    assert [label.annotator for label in admitted.primary] == ["bob"]
    assert admitted.secondary == ()


@pytest.mark.parametrize("at", [NEXT_DAY, datetime.fromisoformat("2036-03-03T00:00:00+00:00")])
def test_once_taken_it_keeps_its_time_also_when_the_claimed_one_has_come(at: datetime) -> None:
    """A tool that keeps every version tells the old one again each night."""
    wrong, right = future_annotation(boxes=[make_box(1, 1, 9, 9)]), make_annotation(boxes=[make_box(2, 2, 9, 9)])
    right["finished_at"] = (COLLECTED_AT + timedelta(hours=9)).isoformat()
    (first,) = validate(wrong).primary
    (corrected,) = validate(wrong, right, collected_at=NEXT_DAY, known=[first]).primary
    assert corrected.boxes[0].xyxy_px[0] == 2
    again = validate(wrong, right, collected_at=at, known=[first, corrected])
    assert (again.primary, again.secondary) == ((), ())


def test_one_answer_has_one_note_whatever_there_is_to_say() -> None:
    twice = future_annotation(boxes=[make_box(1, 1, 41, 41), make_box(1, 1, 41, 41)])
    later = make_annotation(finished_at="2036-03-02T00:00:01+00:00", boxes=[make_box(2, 2, 9, 9)])
    reasons = {
        str(refusal.raw_annotation["finished_at"]): refusal.quarantined.reason
        for refusal in validate(twice, later, collected_at=datetime.fromisoformat(IN_TEN_YEARS)).rejections
    }
    assert list(reasons) == [IN_TEN_YEARS]
    assert "drawn twice" in reasons[IN_TEN_YEARS]
    assert "the annotator changed it at 2036-03-02T00:00:01+00:00" in reasons[IN_TEN_YEARS]
