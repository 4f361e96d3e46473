"""A collection at the door: labels on the one side, refusals on the other. Nothing is dropped in silence.

A refused box takes its image with it: trained on as if it were whole, the image would teach that the object
is background. The image stays in the pool and is offered again. Only a box drawn twice is corrected here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flows.labels.door.answer import checked_answer
from flows.labels.door.choice import Known, choose, newest_of_each, says_the_same, source_of
from flows.labels.door.offer import Offer
from flows.labels.door.refusal import Refusal, Unacceptable, answer_digest, refusal
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
    passed: list[tuple[LabeledImage, Returned]] = []
    refusals: list[Refusal] = []
    for answer in returned:
        try:
            label, doubled = checked_answer(answer, offer)
            if answer_digest(offer.batch, answer) not in offer.confirmed:
                require_plausible(label, offer)
        except Unacceptable as problem:
            refusals.append(refusal(problem.kind, offer.batch, str(problem), answer))
            continue
        passed.append((label, answer))
        if doubled:
            twice = f"{doubled} boxes are drawn twice (same class, IoU above {offer.rules.duplicate_iou:g})"
            left_out = f"{twice}, expected each once; the second was left out"
            refusals.append(refusal("note", offer.batch, left_out, answer))
    current = newest_of_each([label for label, _ in passed])
    images, others = choose(current, known)
    return Admitted(images, others, (*refusals, *_outdated(passed, current, offer.batch)))


def _outdated(passed: list[tuple[LabeledImage, Returned]], current: list[LabeledImage], batch: int) -> list[Refusal]:
    """Answers whose annotator gave another one since; kept for the record."""
    newest = {source_of(label): label for label in current}
    return [
        refusal("note", batch, f"the annotator changed it at {newest[source_of(label)].finished_at}", answer)
        for label, answer in passed
        if not says_the_same(label, newest[source_of(label)])
    ]
