"""A collection at the door: labels on the one side, refusals on the other. Nothing is dropped in silence.

A refused box takes its image with it: trained on as if it were whole, the image would teach that the object
is background. The image stays in the pool and is offered again. Corrected are only a box drawn twice and a time
that has not come yet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flows.annotation.providers.base import RawAnnotation
from flows.annotation.validation.annotation import clamp_future_timestamp, is_identical, parse_annotation
from flows.annotation.validation.context import ValidationContext
from flows.annotation.validation.plausibility import require_plausible
from flows.annotation.validation.rejection import (
    ImplausibleAnnotation,
    InvalidAnnotation,
    Rejection,
    annotation_digest,
    reject,
)
from flows.annotation.validation.resolve_conflicts import (
    ExistingAnnotations,
    annotator_key,
    has_same_content,
    latest_per_annotator,
    resolve_conflicts,
)
from tasks.data.schemas import LabeledImage


@dataclass(frozen=True)
class ValidationResult:
    """A collection after the check."""

    primary: tuple[LabeledImage, ...]
    """Answers that count from now on, one an image, by image id."""
    secondary: tuple[LabeledImage, ...]
    """New answers beside those that count, or beside one that an earlier batch holds."""
    rejections: tuple[Rejection, ...]


def validate_batch(
    raw_annotations: Iterable[RawAnnotation], context: ValidationContext, existing: ExistingAnnotations
) -> ValidationResult:
    """Split what came back into labels and refusals; what label batches hold already is in neither.

    Args:
        returned: as the provider gave it, in any order; an image may have several answers.
        offer: the delivery they answer.
        known: every answer that label batches hold, by image id, in the order they came in.
    """
    accepted: list[_Accepted] = []
    rejections: list[Rejection] = []
    for raw in raw_annotations:
        try:
            accepted.append(_already_imported(raw, context, existing) or _validate(raw, context, existing))
        except InvalidAnnotation as problem:
            rejections.append(reject(problem.kind, context.batch, str(problem), raw))
    current = latest_per_annotator([item.label for item in accepted])
    primary, secondary = resolve_conflicts(current, existing)
    return ValidationResult(primary, secondary, (*rejections, *_notes(accepted, current, context)))


@dataclass(frozen=True)
class _Accepted:
    """An answer that went through."""

    label: LabeledImage
    num_duplicates: int
    """Boxes that were left out."""
    raw: RawAnnotation


def _already_imported(
    raw: RawAnnotation, context: ValidationContext, existing: ExistingAnnotations
) -> _Accepted | None:
    """An answer that a label batch holds to the letter. Most are: every night tells all of a campaign again."""
    image_id = raw.get("image_id")
    for old in existing.get(image_id, ()) if isinstance(image_id, str) else ():
        if is_identical(old, raw, context.batch):
            return _Accepted(old, 0, raw)
    return None


def _validate(raw: RawAnnotation, context: ValidationContext, existing: ExistingAnnotations) -> _Accepted:
    label, num_duplicates = parse_annotation(raw, context)
    try:
        require_plausible(label, context)
    except ImplausibleAnnotation:
        if annotation_digest(context.batch, raw) not in context.approved:
            raise
    return _Accepted(clamp_future_timestamp(label, context, existing), num_duplicates, raw)


def _notes(
    accepted: Sequence[_Accepted], current: Sequence[LabeledImage], context: ValidationContext
) -> list[Rejection]:
    """What is kept for the record, one note an answer: so it says the same however often the answer comes in."""
    newest = {annotator_key(label): label for label in current}
    notes = []
    for item in accepted:
        texts = _note_texts(item, newest[annotator_key(item.label)], context)
        if texts:
            notes.append(reject("note", context.batch, "; ".join(texts), item.raw))
    return notes


def _note_texts(accepted: _Accepted, newest: LabeledImage, context: ValidationContext) -> list[str]:
    texts = []
    if accepted.num_duplicates:
        duplicates = f"{accepted.num_duplicates} boxes are drawn twice (same class, IoU above {context.limits.duplicate_iou_threshold:g})"
        texts.append(f"{duplicates}, expected each once; the second was left out")
    if accepted.label.reported_finished_at is not None:
        clock_skew = f"finished_at is {accepted.label.reported_finished_at!r}, expected a time that has come"
        texts.append(f"{clock_skew}; it counts as finished when it was collected")
    if not has_same_content(accepted.label, newest):
        texts.append(f"the annotator changed it at {newest.reported_finished_at or newest.finished_at}")
    return texts
