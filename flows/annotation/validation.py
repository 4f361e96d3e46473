"""Validate all annotations of one delivery: every one ends as a label or as a rejection; of several, one is used.

An invalid box rejects its whole image: trained on without the box, the image would teach that the object is
background. The image stays in the pool and is offered again. Only two things are corrected: a box drawn twice is used
once, and a finish time in the future becomes the time of the collection.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flows.annotation.annotation_rules import (
    ImplausibleAnnotation,
    InvalidAnnotation,
    Rejection,
    ValidationContext,
    annotation_digest,
    is_identical,
    parse_annotation,
    reject,
    require_plausible,
)
from flows.annotation.providers.base import RawAnnotation
from tasks.data.schemas import LabeledImage
from tasks.runtime.formatting import count

ExistingAnnotations = Mapping[str, Sequence[LabeledImage]]
"""All annotations in the label batches, by image id, in the order they were collected."""


@dataclass(frozen=True)
class ValidationResult:
    """The annotations of one delivery after validation."""

    primary: tuple[LabeledImage, ...]
    """New labels that are used from now on, at most one per image, by image id."""
    secondary: tuple[LabeledImage, ...]
    """New annotations beside the used ones, or beside one of an earlier batch."""
    rejections: tuple[Rejection, ...]
    honeypots: tuple[LabeledImage, ...] = ()
    """Answers to honeypots, the latest of each annotator."""


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
    earlier = _EarlierAnnotations(existing)
    for raw in raw_annotations:
        own = earlier.of(raw.get("image_id"), raw.get("annotator"))
        try:
            accepted.append(_already_imported(raw, context, own) or _validate(raw, context, own))
        except InvalidAnnotation as problem:
            rejections.append(reject(problem.kind, context.batch, str(problem), raw))
    latest = latest_per_annotator([item.label for item in accepted])
    primary, secondary = resolve_conflicts((label for label in latest if not label.is_honeypot), existing)
    honeypots = tuple(label for label in latest if label.is_honeypot)
    return ValidationResult(primary, secondary, (*rejections, *_notes(accepted, latest, context)), honeypots)


@dataclass(frozen=True)
class _Accepted:
    """A valid annotation."""

    label: LabeledImage
    num_duplicates: int
    """Boxes that were left out."""
    raw: RawAnnotation


class _EarlierAnnotations:
    """Earlier annotations by image and annotator; grouped once, so that thousands of one image cost no more each."""

    def __init__(self, existing: ExistingAnnotations) -> None:
        self._existing = existing
        self._grouped: dict[str, dict[str, list[LabeledImage]]] = {}

    def of(self, image_id: Any, annotator: Any) -> Sequence[LabeledImage]:
        """Return those of one annotator to one image; none for values that are no names."""
        if not isinstance(image_id, str) or not isinstance(annotator, str):
            return ()
        if image_id not in self._grouped:
            by_annotator = self._grouped.setdefault(image_id, {})
            for label in self._existing.get(image_id, ()):
                by_annotator.setdefault(label.annotator, []).append(label)
        return self._grouped[image_id].get(annotator, ())


def _already_imported(raw: RawAnnotation, context: ValidationContext, own: Sequence[LabeledImage]) -> _Accepted | None:
    """Find the label that an annotation became earlier; most did, since providers return everything each time."""
    return next((_Accepted(old, 0, raw) for old in own if is_identical(old, raw, context.batch)), None)


def _validate(raw: RawAnnotation, context: ValidationContext, own: Sequence[LabeledImage]) -> _Accepted:
    label, num_duplicates = parse_annotation(raw, context)
    try:
        require_plausible(label, context)
    except ImplausibleAnnotation:
        if annotation_digest(context.batch, raw) not in context.approved:
            raise
    return _Accepted(clamp_future_timestamp(label, context, {label.image_id: own}), num_duplicates, raw)


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
    if not accepted.label.has_same_content(latest):
        texts.append(f"the annotator changed it at {latest.reported_finished_at or latest.finished_at}")
    return texts


def clamp_future_timestamp(
    label: LabeledImage, context: ValidationContext, existing: ExistingAnnotations
) -> LabeledImage:
    """Replace a finish time in the future, from a clock that is wrong, by the time of the first collection.

    Used as it is, such an annotation would take priority over all later ones, for years. The label keeps the reported
    time beside the one used.

    Args:
        label: with the time that its provider reports.
        context: time of the collection, and how far a clock may be ahead.
        existing: earlier annotations; one that reported the same time keeps the time it got then, also when the
            reported time has passed.
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


def resolve_conflicts(
    annotations: Iterable[LabeledImage], existing: ExistingAnnotations
) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
    """Split new annotations into primary ones, at most one per image, and secondary ones; both by image id.

    An annotation that repeats its annotator's earlier one is not new, however often it is returned. Where an annotator
    changes an annotation to ``skipped``, that of another annotator may become primary again.

    Args:
        annotations: at most one per annotator, image and delivery (``latest_per_annotator``), in any order.
        existing: annotations of earlier collections.
    """
    new: dict[str, list[LabeledImage]] = {}
    current_by_image: dict[str, dict[tuple[str, int, str], LabeledImage]] = {}
    for label in annotations:
        current = current_by_image.setdefault(
            label.image_id, {annotator_key(previous): previous for previous in existing.get(label.image_id, ())}
        )
        old = current.get(annotator_key(label))
        if old is None or not label.has_same_content(old):
            new.setdefault(label.image_id, []).append(label)
    primary: list[LabeledImage] = []
    secondary: list[LabeledImage] = []
    for image_id in sorted(new):
        previous_primary = max(current_by_image[image_id].values(), key=_priority, default=None)
        new_primary = max(
            (current_by_image[image_id] | {annotator_key(label): label for label in new[image_id]}).values(),
            key=_priority,
        )
        primary += [new_primary] if new_primary is not previous_primary else []
        secondary += sorted((label for label in new[image_id] if label is not new_primary), key=_priority)
    return tuple(primary), tuple(secondary)


def latest_per_annotator(annotations: Iterable[LabeledImage]) -> list[LabeledImage]:
    """Keep the last annotation of each annotator per image and delivery."""
    return list({annotator_key(label): label for label in sorted(annotations, key=_recency)}.values())


def annotator_key(label: LabeledImage) -> tuple[str, int, str]:
    """Return image id, batch in which the image was offered, and annotator."""
    return label.image_id, label.offered_batch, label.annotator


def _recency(label: LabeledImage) -> tuple[datetime, str]:
    """Sort key; the text orders annotations of the same second independently of the order they are returned in."""
    return datetime.fromisoformat(label.finished_at), label.model_dump_json()


def _priority(label: LabeledImage) -> tuple[bool, datetime, str]:
    return label.status != "skipped", *_recency(label)
