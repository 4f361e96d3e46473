"""What lies in an inbox, made into answers.

When is an image finished? A YOLO or VOC file of its own says so, even an empty one, unless it is byte for byte the one
that was handed out. A COCO file lists images nobody opened as well: there an image counts when the file, or a line of
``reviewed.csv``, says that somebody has reviewed it, or when it has boxes and they are not the pre-drawn ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flows.annotation.providers.base import RawAnnotation
from flows.annotation.providers.folder.detect_format import FileAnnotation, FileProblem, InboxReader
from flows.annotation.providers.folder.parsed import ParsedAnnotation
from flows.annotation.providers.folder.writers import OfferedImage
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.storage.backends import FileEntry, Storage

_TOLERANCE_PX = 0.5
"""Tools round coordinates when they save."""


@dataclass(frozen=True)
class Inbox:
    """Everything one inbox holds."""

    annotations: Sequence[RawAnnotation]
    """All of them, by image and annotator; which of several counts is decided at the door."""
    problems: Sequence[RawAnnotation]
    """With a ``problem`` instead of boxes: the door sets them aside."""
    unfinished: Sequence[str]
    """What is not finished, in words."""


def read_inbox(
    storage: Storage,
    folder: str,
    offered: Sequence[OfferedImage],
    classes: Sequence[str] | None,
    default_annotator: str,
) -> Inbox:
    """Read all files below ``folder``.

    Args:
        place: where.
        folder: ``inbox/batch-0003``; need not exist yet.
        offered: the images of the batch.
        classes: class names by number as the batch went out; None where that is not known any more.
        unnamed: what to call an annotator whom no file names.

    Raises:
        ProviderError: the place is out of reach.
    """
    tasks = {image.task.image_id: image for image in offered}
    reader = InboxReader(storage, folder, tasks, classes)
    builder = _Builder(reader, storage, folder, tasks, default_annotator)
    for source in reader.annotations:
        builder.add(source)
    builder.add_marks()
    return builder.result()


class _Builder:
    """From what the files say to answers."""

    def __init__(
        self,
        reader: InboxReader,
        storage: Storage,
        folder: str,
        offered: Mapping[str, OfferedImage],
        default_annotator: str,
    ) -> None:
        self._reader, self._offered, self._default_annotator = reader, offered, default_annotator
        self._storage, self._folder, self._batch = storage, folder, PurePosixPath(folder).name
        self._annotations: list[RawAnnotation] = []
        self._problems = list(reader.problems)
        self._num_unmodified: Counter[str] = Counter()

    def add(self, source: FileAnnotation) -> None:
        """One thing a file says: an answer, a trouble, or an image nobody has finished."""
        parsed, image_id = source.parsed, self._reader.find_image_id(source.parsed)
        if image_id is None:
            reason = (
                parsed.problem or f"the image is called {parsed.image[:100]!r}, expected an id or name of the batch"
            )
            self._problems.append(FileProblem(source.entry, parsed.image, reason, parsed.annotator))
            return
        task = self._offered[image_id].task
        if problem := parsed.problem or _size_mismatch(parsed, task):
            self._problems.append(FileProblem(source.entry, image_id, problem, parsed.annotator))
        elif image_id in self._reader.marks or _is_finished(source, task):
            self._annotations.append(self._raw_annotation(source.entry, image_id, parsed))
        else:
            self._num_unmodified[source.entry.name] += 1

    def add_marks(self) -> None:
        """Lines of ``reviewed.csv`` that are answers by themselves."""
        annotated = {raw["image_id"] for raw in self._annotations}
        for image_id, (entry, mark) in self._reader.marks.items():
            if mark.status in ("empty", "skipped") and image_id not in annotated:
                self._annotations.append(self._raw_annotation(entry, image_id, ParsedAnnotation(image_id)))

    def result(self) -> Inbox:
        """Everything taken, by image."""
        reason = "neither marked as reviewed nor other than handed out"
        unmodified = [f"{name}: {count} images are {reason}" for name, count in sorted(self._num_unmodified.items())]
        return Inbox(
            annotations=sorted(self._annotations, key=lambda answer: (answer["image_id"], answer["annotator"])),
            problems=[self._raw_problem(problem) for problem in self._problems],
            unfinished=[*self._reader.unfinished, *unmodified],
        )

    def _raw_annotation(self, entry: FileEntry, image_id: str, parsed: ParsedAnnotation) -> RawAnnotation:
        mark = self._reader.marks[image_id][1] if image_id in self._reader.marks else None
        annotator = str(parsed.annotator or (mark and mark.annotator) or self._default_annotator)
        seconds = parsed.seconds_spent if parsed.seconds_spent is not None else mark and mark.seconds_spent
        return {
            "image_id": image_id,
            "status": parsed.status or (mark and mark.status) or ("labeled" if parsed.boxes else "empty"),
            "boxes": [dict(box) for box in parsed.boxes],
            "annotator": annotator,
            "finished_at": parsed.finished_at or (mark and mark.finished_at) or _modified_at(entry),
            "seconds_spent": seconds,
            "answer_id": f"{self._batch}/{annotator}/{image_id}",
            "url": self._file_uri(entry),
            "image_sha256": parsed.sha256,
        }

    def _file_uri(self, entry: FileEntry) -> str:
        return self._storage.uri(f"{self._folder}/{entry.name}")

    def _raw_problem(self, problem: FileProblem) -> RawAnnotation:
        return {
            "image_id": problem.image,
            "problem": f"{problem.entry.name}: {problem.reason}",
            "annotator": str(problem.annotator or self._default_annotator),
            "finished_at": _modified_at(problem.entry),
            "answer_id": f"{self._batch}/{problem.entry.name}#{problem.image}",
            "url": self._file_uri(problem.entry),
        }


def _is_finished(source: FileAnnotation, task: AnnotationTask) -> bool:
    if source.parsed.is_reviewed:
        return True
    if source.parsed.has_explicit_status:
        return not source.is_unmodified
    return bool(source.parsed.boxes) and not _has_same_boxes(source.parsed.boxes, task.predictions)


def _has_same_boxes(boxes: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction]) -> bool:
    """Whether these are the pre-drawn boxes, in any order and to half a pixel."""
    left = list(predictions)
    for box in boxes:
        same = [p for p in left if p.category == box["category"] and _is_close(p.xyxy_px, box["xyxy_px"])]
        if not same:
            return False
        left.remove(same[0])
    return not left


def _is_close(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(a - b) <= _TOLERANCE_PX for a, b in zip(first, second, strict=True))


def _size_mismatch(parsed: ParsedAnnotation, task: AnnotationTask) -> str | None:
    if parsed.size_px is None or parsed.size_px == (task.width_px, task.height_px):
        return None
    stated = f"the labeled picture is {parsed.size_px[0]} x {parsed.size_px[1]} px"
    return f"{stated}, expected {task.width_px} x {task.height_px} px as it was handed out"


def _modified_at(entry: FileEntry) -> str:
    return entry.modified_at.isoformat(timespec="seconds")
