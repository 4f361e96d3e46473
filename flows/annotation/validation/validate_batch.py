"""Validate all annotations of one delivery: every one ends as a label or as a rejection.

An invalid box rejects its whole image: trained on without the box, the image would teach that the object is
background. The image stays in the pool and is offered again. Only two things are corrected: a box drawn twice is used
once, and a finish time in the future becomes the time of the collection.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flows.annotation.providers.base import RawAnnotation
from flows.annotation.validation.annotation import (
    ImplausibleAnnotation,
    InvalidAnnotation,
    Rejection,
    ValidationContext,
    annotation_digest,
    clamp_future_timestamp,
    is_identical,
    parse_annotation,
    reject,
    require_plausible,
)
from flows.annotation.validation.resolve_conflicts import (
    ExistingAnnotations,
    annotator_key,
    has_same_content,
    latest_per_annotator,
    resolve_conflicts,
)
from tasks.data.schemas import LabeledImage
from tasks.runtime.formatting import count


@dataclass(frozen=True)
class ValidationResult:
    """The annotations of one delivery after validation."""

    primary: tuple[LabeledImage, ...]
    """New labels that are used from now on, at most one per image, by image id."""
    secondary: tuple[LabeledImage, ...]
    """New annotations beside the used ones, or beside one of an earlier batch."""
    rejections: tuple[Rejection, ...]


def validate_batch(
    raw_annotations: Iterable[RawAnnotation], context: ValidationContext, existing: ExistingAnnotations
) -> ValidationResult:
    """Split returned annotations into labels and rejections; those in the label batches already are in neither.

    Args:
        raw_annotations: as the provider returned them, in any order; an image may have several.
        context: the delivery they belong to, and the limits.
        existing: annotations of earlier collections.
    """
    accepted: list[_Accepted] = []
    rejections: list[Rejection] = []
    for raw in raw_annotations:
        try:
            accepted.append(_already_imported(raw, context, existing) or _validate(raw, context, existing))
        except InvalidAnnotation as problem:
            rejections.append(reject(problem.kind, context.batch, str(problem), raw))
    latest = latest_per_annotator([item.label for item in accepted])
    primary, secondary = resolve_conflicts(latest, existing)
    return ValidationResult(primary, secondary, (*rejections, *_notes(accepted, latest, context)))


@dataclass(frozen=True)
class _Accepted:
    """A valid annotation."""

    label: LabeledImage
    num_duplicates: int
    """Boxes that were left out."""
    raw: RawAnnotation


def _already_imported(
    raw: RawAnnotation, context: ValidationContext, existing: ExistingAnnotations
) -> _Accepted | None:
    """Find the label that an annotation became earlier; most did, since providers return everything each time."""
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
    accepted: Sequence[_Accepted], latest: Sequence[LabeledImage], context: ValidationContext
) -> list[Rejection]:
    """Build at most one note per annotation, equal however often the annotation is returned."""
    latest_by_key = {annotator_key(label): label for label in latest}
    notes = []
    for item in accepted:
        texts = _note_texts(item, latest_by_key[annotator_key(item.label)], context)
        if texts:
            notes.append(reject("note", context.batch, "; ".join(texts), item.raw))
    return notes


def _note_texts(accepted: _Accepted, latest: LabeledImage, context: ValidationContext) -> list[str]:
    texts = []
    if accepted.num_duplicates:
        limit = context.limits.duplicate_iou_threshold
        left_out = f"{count(accepted.num_duplicates, 'duplicate box', 'duplicate boxes')} left out"
        texts.append(f"{left_out} (same class, IoU above {limit:g})")
    if accepted.label.reported_finished_at is not None:
        reported = f"finished_at is {accepted.label.reported_finished_at!r}, expected a time in the past"
        texts.append(f"{reported}; the time of the collection is used")
    if not has_same_content(accepted.label, latest):
        texts.append(f"the annotator changed it at {latest.reported_finished_at or latest.finished_at}")
    return texts
