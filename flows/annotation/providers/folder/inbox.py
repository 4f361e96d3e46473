"""Decide which images of an inbox are finished, and return their annotations.

Tools write a file or an entry for every image, opened or not: blank, or with the pre-annotations. So in every format an
image is finished only where the document states a status, where a line of ``reviewed.csv`` names it, or where it has
boxes that differ from the pre-annotations.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flows.annotation.providers.base import RawAnnotation, to_raw_annotation
from flows.annotation.providers.folder.inbox_files import FileAnnotation, FileProblem, InboxReader, ReviewMark
from flows.annotation.providers.folder.outbox import OfferedImage
from tasks.data.formats.base import ParsedBox, ParsedImage
from tasks.data.schemas import Prediction
from tasks.runtime.formatting import count_are
from tasks.storage.backends import FileEntry, Storage

_TOLERANCE_PX = 1.0
"""Tools round corners to whole pixels, or cut the fraction off, when they write an image nobody has opened."""


@dataclass(frozen=True)
class Inbox:
    """The content of one inbox."""

    annotations: Sequence[RawAnnotation]
    """Of finished images, by image and annotator; an image may have several."""
    problems: Sequence[RawAnnotation]
    """Files and entries that cannot be used, as annotations with a ``problem``."""
    unfinished: Sequence[str]
    """Messages about incomplete files and unfinished images."""


def read_inbox(
    storage: Storage,
    folder: str,
    offered: Sequence[OfferedImage],
    classes: Sequence[str] | None,
    default_annotator: str,
) -> Inbox:
    """Read all files below ``folder``.

    Args:
        storage: of the annotators.
        folder: ``inbox/batch-0003``; need not exist.
        offered: the images of the batch.
        classes: class names by number, as published with the batch; None where that is unknown.
        default_annotator: name of an annotator whom no file names.

    Raises:
        StorageError: the storage does not answer.
    """
    by_id = {image.task.image_id: image for image in offered}
    reader = InboxReader(storage, folder, by_id, classes)
    converter = _Converter(storage, folder, default_annotator, reader.marks)
    annotations, num_unfinished = [], Counter[str]()
    for found in reader.annotations:
        if found.image_id in reader.marks or _is_finished(found, by_id[found.image_id]):
            annotations.append(converter.annotation(found.entry, found.image_id, found.parsed))
        else:
            num_unfinished[found.entry.name] += 1
    annotated = {raw["image_id"] for raw in annotations}
    for image_id, (entry, mark) in reader.marks.items():
        if mark.status in ("empty", "skipped") and image_id not in annotated:
            annotations.append(converter.annotation(entry, image_id, ParsedImage(image_id, entry.name)))
    reason = "neither marked as reviewed nor different from the pre-annotations"
    return Inbox(
        annotations=sorted(annotations, key=lambda raw: (raw["image_id"], raw["annotator"])),
        problems=[converter.problem(problem) for problem in reader.problems],
        unfinished=[
            *reader.unfinished,
            *(f"{name}: {count_are(number, 'image')} {reason}" for name, number in sorted(num_unfinished.items())),
        ],
    )


class _Converter:
    """Converts parsed annotations and problems of one inbox to the form that providers return."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        default_annotator: str,
        marks: Mapping[str, tuple[FileEntry, ReviewMark]],
    ) -> None:
        self._storage, self._folder, self._marks = storage, folder, marks
        self._batch, self._default_annotator = PurePosixPath(folder).name, default_annotator

    def annotation(self, entry: FileEntry, image_id: str, parsed: ParsedImage) -> RawAnnotation:
        """Convert one image; what the document leaves open is taken from its line of ``reviewed.csv``."""
        _, mark = self._marks.get(image_id, (None, None))
        annotator = parsed.annotator or (mark and mark.annotator) or self._default_annotator
        fields: dict[str, Any] = {
            "image_id": image_id,
            "annotator": annotator,
            "finished_at": parsed.finished_at or (mark and mark.finished_at) or _modified_at(entry),
            "answer_id": f"{self._batch}/{annotator}/{image_id}",
            "url": self._file_uri(entry),
        }
        if parsed.status is None and mark is not None and mark.status is not None:
            fields["status"] = mark.status
        if parsed.seconds_spent is None and mark is not None:
            fields["seconds_spent"] = mark.seconds_spent
        raw = to_raw_annotation(parsed, **fields)
        return {**raw, "problem": f"{entry.name}: {raw['problem']}"} if "problem" in raw else raw

    def problem(self, problem: FileProblem) -> RawAnnotation:
        """Convert a problem to an annotation that validation rejects with its reason."""
        return {
            "image_id": problem.image,
            "problem": f"{problem.entry.name}: {problem.reason}",
            "annotator": problem.annotator or self._default_annotator,
            "finished_at": None,  # the same problem of a file that was saved again is the same
            "answer_id": f"{self._batch}/{problem.entry.name}#{problem.image}",
            "url": self._file_uri(problem.entry),
        }

    def _file_uri(self, entry: FileEntry) -> str:
        return self._storage.uri(f"{self._folder}/{entry.name}")


def _is_finished(found: FileAnnotation, offered: OfferedImage) -> bool:
    """A stated status or changed boxes; an entry with a problem counts too, so that it is reported."""
    parsed = found.parsed
    if parsed.status is not None or parsed.first_problem is not None:
        return True
    predrawn = (offered.task.predictions, *offered.refreshed)
    return bool(parsed.boxes) and not any(_has_same_boxes(parsed.boxes, boxes) for boxes in predrawn)


def _has_same_boxes(boxes: Sequence[ParsedBox], predictions: Sequence[Prediction]) -> bool:
    """Whether the boxes are the pre-annotations, in any order and up to the tolerance."""
    left = list(predictions)
    for box in boxes:
        if box.kind != "box" or box.is_crowd:
            return False
        same = [found for found in left if found.category == box.category and _is_close(found.xyxy_px, box.xyxy)]
        if not same:
            return False
        left.remove(same[0])
    return not left


def _is_close(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(a - b) <= _TOLERANCE_PX for a, b in zip(first, second, strict=True))


def _modified_at(entry: FileEntry) -> str:
    return entry.modified_at.isoformat(timespec="seconds")
