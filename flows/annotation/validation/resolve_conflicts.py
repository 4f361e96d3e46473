"""Decide which of several annotations of an image is used.

Of each annotator the newest annotation is used. Among annotators, one with boxes or ``empty`` has priority over
``skipped``, and of several the one finished last is used. The others are kept as well: they measure agreement.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tasks.data.schemas import LabeledImage

ExistingAnnotations = Mapping[str, Sequence[LabeledImage]]
"""All annotations in the label batches, by image id, in the order they were collected."""


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
        if old is None or not has_same_content(old, label):
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


def has_same_content(first: LabeledImage, second: LabeledImage) -> bool:
    """Whether two annotations have the same status and boxes."""
    return (first.status, first.boxes) == (second.status, second.boxes)


def _recency(label: LabeledImage) -> tuple[datetime, str]:
    """Sort key; the text orders annotations of the same second independently of the order they are returned in."""
    return datetime.fromisoformat(label.finished_at), label.model_dump_json()


def _priority(label: LabeledImage) -> tuple[bool, datetime, str]:
    return label.status != "skipped", *_recency(label)
