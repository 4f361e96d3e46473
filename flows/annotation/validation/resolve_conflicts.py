"""Several answers to one image: which one counts.

Of each person the newest answer stands: they may have changed their mind. Among people, one with an answer
counts before one that skips the image, and of several the one finished last. The rest is kept beside it: it
tells how far annotators agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tasks.data.schemas import LabeledImage

ExistingAnnotations = Mapping[str, Sequence[LabeledImage]]
"""Every answer that label batches hold, by image id, in the order they came in."""


def resolve_conflicts(
    annotations: Iterable[LabeledImage], existing: ExistingAnnotations
) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
    """Those that count from now on, one an image; and the news that do not. Both by image id.

    What somebody has said before is no news, however often it is delivered. Where a person takes an answer
    back, that of another one may count again.

    Args:
        answers: one of each person to an image of one delivery at most (``latest_per_annotator``), in any order.
        known: answers so far.
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
    """The last answer of each person to an image of one delivery."""
    return list({annotator_key(label): label for label in sorted(annotations, key=_recency)}.values())


def annotator_key(label: LabeledImage) -> tuple[str, int, str]:
    """Whose answer to what: image id, batch it was offered in, annotator."""
    return label.image_id, label.offered_batch, label.annotator


def has_same_content(first: LabeledImage, second: LabeledImage) -> bool:
    """Whether two answers differ in nothing but when they were given."""
    return (first.status, first.boxes) == (second.status, second.boxes)


def _recency(label: LabeledImage) -> tuple[datetime, str]:
    """The text decides between answers of the same second, so that the order they come in does not."""
    return datetime.fromisoformat(label.finished_at), label.model_dump_json()


def _priority(label: LabeledImage) -> tuple[bool, datetime, str]:
    return label.status != "skipped", *_recency(label)
