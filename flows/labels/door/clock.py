"""Answers with a time that has not come yet: some clock is wrong, an annotator's or that of their files.

Taken at its word, such an answer would count before everything said after it, for years. The latest it can have been
finished is when it first went into a label batch; that time it gets, and keeps. What was claimed is kept beside it.
"""

from datetime import datetime, timedelta

from flows.labels.door.choice import ExistingAnnotations, annotator_key
from flows.labels.door.offer import ValidationContext
from tasks.contracts import LabeledImage


def clamp_future_timestamp(
    label: LabeledImage, context: ValidationContext, existing: ExistingAnnotations
) -> LabeledImage:
    """The label, finished at a time that has come.

    Args:
        label: with the time its provider tells.
        offer: says when the answer was collected, and how far a clock may be ahead.
        known: answers so far; one that claimed the same time before keeps what it got then, also when that time comes.
    """
    reported = label.finished_at
    previous = [old for old in existing.get(label.image_id, ()) if annotator_key(old) == annotator_key(label)]
    clamped = next((old.finished_at for old in previous if old.reported_finished_at == reported), None)
    if clamped is None:
        latest = context.collected_at + timedelta(minutes=context.limits.max_clock_skew_minutes)
        if datetime.fromisoformat(reported) <= latest:
            return label
        clamped = context.collected_at.isoformat(timespec="seconds")
    return label.model_copy(update={"finished_at": clamped, "reported_finished_at": reported})
