"""Answers with a time that has not come yet: some clock is wrong, an annotator's or that of their files.

Taken at its word, such an answer would count before everything said after it, for years. The latest it can have been
finished is when it first went into a label batch; that time it gets, and keeps. What was claimed is kept beside it.
"""

from datetime import datetime, timedelta

from flows.labels.door.choice import Known, source_of
from flows.labels.door.offer import Offer
from tasks.contracts import LabeledImage


def with_possible_time(label: LabeledImage, offer: Offer, known: Known) -> LabeledImage:
    """The label, finished at a time that has come.

    Args:
        label: with the time its provider tells.
        offer: says when the answer was collected, and how far a clock may be ahead.
        known: answers so far; one that claimed the same time before keeps what it got then, also when that time comes.
    """
    claimed = label.finished_at
    before = [old for old in known.get(label.image_id, ()) if source_of(old) == source_of(label)]
    given = next((old.finished_at for old in before if old.claimed_at == claimed), None)
    if given is None:
        latest = offer.collected_at + timedelta(minutes=offer.rules.clock_ahead_minutes)
        if datetime.fromisoformat(claimed) <= latest:
            return label
        given = offer.collected_at.isoformat(timespec="seconds")
    return label.model_copy(update={"finished_at": given, "claimed_at": claimed})
