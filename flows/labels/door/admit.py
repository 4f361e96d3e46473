"""A collection at the door: labels on the one side, refusals on the other. Nothing is dropped in silence.

A refused box takes its image with it: trained on as if it were whole, the image would teach that the object
is background. The image stays in the pool and is offered again. Corrected are only a box drawn twice and a time
that has not come yet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flows.labels.door.answer import checked_answer, is_word_for_word
from flows.labels.door.choice import Known, choose, newest_of_each, says_the_same, source_of
from flows.labels.door.clock import with_possible_time
from flows.labels.door.offer import Offer
from flows.labels.door.refusal import Refusal, Suspicious, Unacceptable, answer_digest, refusal
from flows.labels.door.suspicion import require_plausible
from flows.labels.providers.base import Returned
from tasks.contracts import LabeledImage


@dataclass(frozen=True)
class Admitted:
    """A collection after the check."""

    images: tuple[LabeledImage, ...]
    """Answers that count from now on, one an image, by image id."""
    others: tuple[LabeledImage, ...]
    """New answers beside those that count, or beside one that an earlier batch holds."""
    refusals: tuple[Refusal, ...]


def admit(returned: Iterable[Returned], offer: Offer, known: Known) -> Admitted:
    """Split what came back into labels and refusals; what label batches hold already is in neither.

    Args:
        returned: as the provider gave it, in any order; an image may have several answers.
        offer: the delivery they answer.
        known: every answer that label batches hold, by image id, in the order they came in.
    """
    passed: list[_Passed] = []
    refusals: list[Refusal] = []
    for answer in returned:
        try:
            passed.append(_taken_before(answer, offer, known) or _passed(answer, offer, known))
        except Unacceptable as problem:
            refusals.append(refusal(problem.kind, offer.batch, str(problem), answer))
    current = newest_of_each([one.label for one in passed])
    images, others = choose(current, known)
    return Admitted(images, others, (*refusals, *_notes(passed, current, offer)))


@dataclass(frozen=True)
class _Passed:
    """An answer that went through."""

    label: LabeledImage
    doubled: int
    """Boxes that were left out."""
    answer: Returned


def _taken_before(answer: Returned, offer: Offer, known: Known) -> _Passed | None:
    """An answer that a label batch holds to the letter. Most are: every night tells all of a campaign again."""
    image_id = answer.get("image_id")
    for old in known.get(image_id, ()) if isinstance(image_id, str) else ():
        if is_word_for_word(old, answer, offer.batch):
            return _Passed(old, 0, answer)
    return None


def _passed(answer: Returned, offer: Offer, known: Known) -> _Passed:
    label, doubled = checked_answer(answer, offer)
    try:
        require_plausible(label, offer)
    except Suspicious:
        if answer_digest(offer.batch, answer) not in offer.confirmed:
            raise
    return _Passed(with_possible_time(label, offer, known), doubled, answer)


def _notes(passed: Sequence[_Passed], current: Sequence[LabeledImage], offer: Offer) -> list[Refusal]:
    """What is kept for the record, one note an answer: so it says the same however often the answer comes in."""
    newest = {source_of(label): label for label in current}
    notes = []
    for one in passed:
        words = _words(one, newest[source_of(one.label)], offer)
        if words:
            notes.append(refusal("note", offer.batch, "; ".join(words), one.answer))
    return notes


def _words(one: _Passed, newest: LabeledImage, offer: Offer) -> list[str]:
    words = []
    if one.doubled:
        twice = f"{one.doubled} boxes are drawn twice (same class, IoU above {offer.rules.duplicate_iou:g})"
        words.append(f"{twice}, expected each once; the second was left out")
    if one.label.claimed_at is not None:
        wrong = f"finished_at is {one.label.claimed_at!r}, expected a time that has come"
        words.append(f"{wrong}; it counts as finished when it was collected")
    if not says_the_same(one.label, newest):
        words.append(f"the annotator changed it at {newest.claimed_at or newest.finished_at}")
    return words
