"""Answers from the future: a clock is wrong, and nobody's work is lost, or counts for years, because of it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from flows.labels.door.admit import Admitted, admit
from tasks.contracts import LabeledImage
from tests.flows.door.offers import COLLECTED_AT, IMAGE, answer, box, offer

NEXT_NIGHT = COLLECTED_AT + timedelta(days=1)
IN_TEN_YEARS = "2036-03-02T00:00:00+00:00"


def collected(*answers: dict[str, Any], at: datetime = COLLECTED_AT, known: Sequence[LabeledImage] = ()) -> Admitted:
    return admit(answers, offer(at=at), {IMAGE: known})


def ahead(**changes: Any) -> dict[str, Any]:
    return answer(finished_at=IN_TEN_YEARS, **changes)


@pytest.mark.parametrize(("minutes", "believed"), [(0, True), (10, True), (11, False)])
def test_a_clock_may_be_a_little_ahead(minutes: int, believed: bool) -> None:
    claimed = (COLLECTED_AT + timedelta(minutes=minutes)).isoformat()
    admitted = collected(answer(finished_at=claimed))
    (label,) = admitted.images
    assert label.finished_at == (claimed if believed else COLLECTED_AT.isoformat())
    assert label.claimed_at == (None if believed else claimed)
    assert [refusal.kind for refusal in admitted.refusals] == ([] if believed else ["note"])


def test_an_answer_from_the_future_is_taken_and_told() -> None:
    admitted = collected(ahead())
    (label,) = admitted.images
    assert label.boxes
    (note,) = admitted.refusals
    assert f"finished_at is '{IN_TEN_YEARS}', expected a time that has come" in note.quarantined.reason


def test_the_note_says_the_same_every_night() -> None:
    (label,) = collected(ahead()).images
    for known in ([], [label]):
        assert collected(ahead(), at=NEXT_NIGHT, known=known).refusals == collected(ahead()).refusals


def test_who_answers_later_counts() -> None:
    (first,) = collected(ahead()).images
    later = answer(annotator="bob", finished_at=(COLLECTED_AT + timedelta(hours=9)).isoformat())
    admitted = collected(ahead(), later, at=NEXT_NIGHT, known=[first])
    assert [label.annotator for label in admitted.images] == ["bob"]
    assert admitted.others == ()


@pytest.mark.parametrize("at", [NEXT_NIGHT, datetime.fromisoformat("2036-03-03T00:00:00+00:00")])
def test_once_taken_it_keeps_its_time_also_when_the_claimed_one_has_come(at: datetime) -> None:
    """A tool that keeps every version tells the old one again each night."""
    wrong, right = ahead(boxes=[box(1, 1, 9, 9)]), answer(boxes=[box(2, 2, 9, 9)])
    right["finished_at"] = (COLLECTED_AT + timedelta(hours=9)).isoformat()
    (first,) = collected(wrong).images
    (corrected,) = collected(wrong, right, at=NEXT_NIGHT, known=[first]).images
    assert corrected.boxes[0].xyxy_px[0] == 2
    again = collected(wrong, right, at=at, known=[first, corrected])
    assert (again.images, again.others) == ((), ())


def test_one_answer_has_one_note_whatever_there_is_to_say() -> None:
    twice = ahead(boxes=[box(1, 1, 41, 41), box(1, 1, 41, 41)])
    later = answer(finished_at="2036-03-02T00:00:01+00:00", boxes=[box(2, 2, 9, 9)])
    reasons = {
        str(refusal.returned["finished_at"]): refusal.quarantined.reason
        for refusal in collected(twice, later, at=datetime.fromisoformat(IN_TEN_YEARS)).refusals
    }
    assert list(reasons) == [IN_TEN_YEARS]
    assert "drawn twice" in reasons[IN_TEN_YEARS]
    assert "the annotator changed it at 2036-03-02T00:00:01+00:00" in reasons[IN_TEN_YEARS]
