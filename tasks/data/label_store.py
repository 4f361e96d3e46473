"""Read label batches from ``data/labels``; of several answers to one image the newest counts.

Which of several answers counts is decided on collection, before they are in a batch: ``images`` of a later batch
supersede those of an earlier one. The superseded ones stay where they are, as the image's history.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.runtime.errors import UserError

_NAME = re.compile(r"batch-(\d{4,})\.json")
_ROUNDING_PX = 1e-3  # corners that went through float32 may end a hair outside
_UNCHANGED_PX = 0.5  # label tools keep percentages, and round them
_RESTORE = "Label batches are append-only: restore the file from git."


@dataclass(frozen=True)
class Annotation:
    """An answer to one image, and the batch it is in."""

    label: LabeledImage
    batch: int
    file: Path
    picked: LabeledImage
    """The answer for which the image was picked: ``label`` itself, or the one it came to check. The teacher of its
    offered batch had not seen the image, and its time is what labeling took."""


@dataclass(frozen=True)
class LabelStore:
    """All batches together."""

    newest_batch: int
    """The round's number."""
    current: dict[str, Annotation]
    """The newest answer to each image, by image id, sorted."""
    all_annotations: dict[str, tuple[LabeledImage, ...]]
    """Every answer there ever was, by image id, in the order they came in; of one batch, the one that counts last."""
    leased: dict[str, int]
    """Images that were with the annotators when the newest batch was collected, and the batch they were offered in."""
    minutes_spent: float | None
    """Over all answers, those that do not count and those to honeypots too; None where no tool measured any."""
    checks: Mapping[str, bool]
    """Images whose label was checked (docs/method.md#relabel), and whether that changed it."""
    honeypots: tuple[LabeledImage, ...] = ()
    """The latest answer of each annotator to each honeypot; none of them is among the others."""

    @property
    def all_answers(self) -> dict[str, tuple[LabeledImage, ...]]:
        """Every answer by image id, those to honeypots too: what annotators have finished, label or not."""
        answers = dict(self.all_annotations)
        for label in self.honeypots:
            answers[label.image_id] = (*answers.get(label.image_id, ()), label)
        return answers


def read_labels(folder: Path) -> LabelStore:
    """Read every batch.

    Raises:
        UserError: no batch, one missing in between, or one that is no label batch.
    """
    batches = [(path, read_batch(path)) for path in _batch_paths(folder)]
    current: dict[str, Annotation] = {}
    all_annotations: dict[str, list[LabeledImage]] = {}
    checks: dict[str, bool] = {}
    honeypots: dict[tuple[str, int, str], LabeledImage] = {}
    for path, batch in batches:
        honeypots |= {(label.image_id, label.offered_batch, label.annotator): label for label in batch.honeypots}
        checks |= _checks(batch, current, checks)
        current |= {
            label.image_id: Annotation(label, batch.batch, path, _picked(label, current)) for label in batch.images
        }
        for label in (*batch.other_annotations, *batch.images):
            all_annotations.setdefault(label.image_id, []).append(label)
    return LabelStore(
        newest_batch=batches[-1][1].batch,
        current=dict(sorted(current.items())),
        all_annotations={image_id: tuple(labels) for image_id, labels in all_annotations.items()},
        leased=batches[-1][1].leased,
        minutes_spent=_minutes(label for labels in (*all_annotations.values(), honeypots.values()) for label in labels),
        checks=checks,
        honeypots=tuple(honeypots.values()),
    )


def _picked(label: LabeledImage, current: Mapping[str, Annotation]) -> LabeledImage:
    earlier = current.get(label.image_id)
    return label if label.checks_batch is None or earlier is None else earlier.picked


def _checks(
    batch: LabelBatch, current: Mapping[str, Annotation], earlier_checks: Mapping[str, bool]
) -> dict[str, bool]:
    """Return the images whose label a batch checks, and whether an answer that counts has changed it.

    One that was skipped leaves the label as it is: whoever looked at it could not say.
    """
    found: dict[str, bool] = {}
    answers = [(label, False) for label in batch.other_annotations] + [(label, True) for label in batch.images]
    for label, counts in answers:
        if label.checks_batch is not None:
            earlier, before = current.get(label.image_id), earlier_checks.get(label.image_id, False)
            changes = counts and (earlier is None or not _confirms(label, earlier.label))
            found[label.image_id] = changes or before
    return found


def _confirms(label: LabeledImage, earlier: LabeledImage) -> bool:
    """Whether an answer leaves another as it is, up to what label tools round away."""
    if (label.status, len(label.boxes)) != (earlier.status, len(earlier.boxes)):
        return False
    left = list(earlier.boxes)
    for box in label.boxes:
        same = [other for other in left if other.category == box.category and _is_close(box, other)]
        if not same:
            return False
        left.remove(same[0])
    return label.crowd_regions == earlier.crowd_regions


def _is_close(first: Box, second: Box) -> bool:
    return all(abs(a - b) <= _UNCHANGED_PX for a, b in zip(first.xyxy_px, second.xyxy_px, strict=True))


def _minutes(annotations: Iterable[LabeledImage]) -> float | None:
    """Return the minutes of all annotators. Those of a changed answer include those of the answer it replaces."""
    latest = {(label.image_id, label.offered_batch, label.annotator): label.seconds_spent for label in annotations}
    seconds = [spent for spent in latest.values() if spent is not None]
    return sum(seconds) / 60 if seconds else None


def _batch_paths(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.glob("*.json")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(path, "the file is no label batch, expected the name batch-0000.json", "Move it away.")
        found.append((int(match[1]), path))
    found.sort()
    if not found:
        raise UserError(folder, "label batches are 0, expected batch-0000.json", "Make the campaign: gleaner init.")
    for expected, (number, _) in enumerate(found):
        if number != expected:
            name = f"batch-{expected:04d}.json"
            raise UserError(folder, f"{name} is missing, expected every batch up to {found[-1][0]}", _RESTORE)
    return [path for _, path in found]


def read_batch(path: Path) -> LabelBatch:
    """Read one label batch.

    Raises:
        UserError: missing, no label batch, or one of another number than its name says.
    """
    try:
        batch = LabelBatch.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(path, "the file is missing, expected a label batch", _RESTORE) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the content"
        raise UserError(path, f"{key}: {first['msg']}, expected a label batch", _RESTORE) from None
    if path.name != f"batch-{batch.batch:04d}.json":
        raise UserError(path, f"batch is {batch.batch}, expected the number in the file's name", _RESTORE)
    ids = [label.image_id for label in batch.images]
    if len(set(ids)) != len(ids):
        duplicate_id = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise UserError(path, f"image {duplicate_id} stands in it twice, expected once", _RESTORE)
    return batch


def check_annotation(annotation: Annotation, sizes_px: Mapping[str, tuple[int, int]], classes: Sequence[str]) -> None:
    """Check one answer against its image. Labels are also checked on collection, so this finds edits and bugs.

    Args:
        annotation: of an image in ``sizes_px``.
        sizes_px: width and height by image id.
        classes: class names of params.yaml.

    Raises:
        UserError: boxes against the status, outside the image, without area, or of an unknown class.
    """
    label = annotation.label
    if (label.status == "labeled") != bool(label.num_marked):
        problem = f"image {label.image_id} has status {label.status!r} with {label.num_marked} boxes"
        raise UserError(annotation.file, f"{problem}, expected boxes just where it is 'labeled'", _RESTORE)
    width_px, height_px = sizes_px[label.image_id]
    for box in (*label.boxes, *label.crowd_regions):
        if box.category not in classes:
            problem = f"image {label.image_id} has a box of class {box.category!r}, expected one of {list(classes)}"
            raise UserError(annotation.file, problem, "Add the class to classes in params.yaml.")
        x1, y1, x2, y2 = box.xyxy_px
        right, bottom = width_px + _ROUNDING_PX, height_px + _ROUNDING_PX
        if not (-_ROUNDING_PX <= x1 < x2 <= right and -_ROUNDING_PX <= y1 < y2 <= bottom):
            problem = f"image {label.image_id} has a box {list(box.xyxy_px)}"
            expected = f"expected x1 < x2 and y1 < y2 inside {width_px} x {height_px} px"
            raise UserError(annotation.file, f"{problem}, {expected}", _RESTORE)
