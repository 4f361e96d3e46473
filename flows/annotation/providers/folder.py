"""The label provider of kind ``folder``: batches are published in ``outbox/``, annotations are read from ``inbox/``.

Tools write a file or an entry for every image, opened or not: blank, or with the pre-annotations. So in every format an
image is finished only where the document states a status, where a line of ``reviewed.csv`` names it, or where it has
boxes that differ from the pre-annotations.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import (
    AnnotationBatch,
    LabelingProgress,
    ProviderError,
    RawAnnotation,
    own_folder,
    require_provider_owner,
    sample_for_double_annotation,
    to_raw_annotation,
)
from flows.annotation.providers.folder_inbox import FileAnnotation, FileProblem, InboxReader, ReviewMark
from flows.annotation.providers.folder_outbox import (
    OfferedImage,
    offered_images,
    publish_batch,
    publish_refreshed,
    read_complete_marker,
    read_refreshed,
)
from tasks.data.formats.base import ParsedBox, ParsedImage
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.params.annotation import ProviderParams
from tasks.runtime.formatting import count_are
from tasks.storage.backends import FileEntry, Storage, StorageError, open_storage

_log = logging.getLogger(__name__)
_WITHDRAWN = "withdrawn.json"
_OWNER = "outbox/owner.json"
"""The folder of the campaign that publishes here."""
_DEFAULT_ANNOTATOR = "annotator"
_DEFAULT_SECOND_ANNOTATOR = "second annotator"
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
            annotations.append(converter.annotation(found.entry, found.image_id, _confirmed(found, reader.marks)))
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


def _confirmed(found: FileAnnotation, marks: Mapping[str, tuple[FileEntry, ReviewMark]]) -> ParsedImage:
    """What an image holds; a line of ``reviewed.csv`` without a status confirms boxes that the file calls proposals."""
    parsed = found.parsed
    _, mark = marks.get(found.image_id, (None, None))
    if mark is None or mark.status in ("empty", "skipped") or parsed.status is not None or parsed.boxes:
        return parsed
    return replace(parsed, boxes=parsed.predicted, predicted=())


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


class FolderProvider:
    """Exchanges files with annotators through a directory or an s3:// prefix (``provider.url``)."""

    name = "folder"

    def __init__(self, params: ProviderParams, classes: Sequence[str], root: Path) -> None:
        """Keep the parameters, the class names in the order of their numbers, and the campaign's folder."""
        self._url, self._double_annotation_frac = params.url, params.double_annotation_frac
        self._classes, self._root = list(classes), root

    def check(self) -> None:
        """Refuse a directory or prefix that is missing, cannot be written, or belongs to another folder.

        Raises:
            ProviderError: what is wrong with it.
        """
        with self._open_storage() as storage:
            storage.check()
            self._require_owner(storage)

    def take_over(self) -> str | None:
        """Enter this folder of the campaign as the one that publishes here."""
        own = own_folder(self._root)
        with self._open_storage() as storage:
            former_id, former_place = _read_owner(storage)
            if own is not None and former_id != own.owner_id:
                self._write_owner(storage)
                return None if former_id is None else former_place
        return None

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Publish ``outbox/batch-0003``, and ``-second`` with the images that two annotators label."""
        tasks = read_manifest(delivery.folder / MANIFEST)
        first, second = _folder_names(delivery)
        sampled = sample_for_double_annotation(delivery.new_ids, self._double_annotation_frac, delivery.key)
        double_annotated = [task for task in tasks if task.image_id in sampled]
        with self._open_storage() as storage:
            storage.check()
            self._require_owner(storage)
            publish_batch(storage, first, delivery, tasks, self._classes, self._root)
            if double_annotated:
                publish_batch(storage, second, delivery, double_annotated, self._classes, self._root)
            return storage.uri(f"outbox/{first}")

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count the images that at least one annotator has finished."""
        annotated = {raw["image_id"] for inbox in self._read_inboxes(delivery) for raw in inbox.annotations}
        return LabelingProgress(finished=len(annotated), open=len(delivery.image_ids) - len(annotated))

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return every annotation in the inboxes, and after them the files and entries that cannot be used.

        Incomplete files and images that are not marked as finished are logged.
        """
        inboxes = self._read_inboxes(delivery)
        for inbox in inboxes:
            for message in inbox.unfinished:
                _log.warning("inbox of batch %d: %s; read again at the next run", delivery.batch, message)
        return [raw for inbox in inboxes for raw in (*inbox.annotations, *inbox.problems)]

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """List the images in ``withdrawn.json``; copies that annotators have made cannot be taken back."""
        with self._open_storage() as storage:
            for name in _folder_names(delivery):
                if read_complete_marker(storage, name) is None:
                    continue
                path = f"outbox/{name}/{_WITHDRAWN}"
                withdrawn = _parse_image_ids(storage.read_optional(path))
                updated = withdrawn | (set(image_ids) & set(delivery.image_ids))
                if updated != withdrawn:
                    storage.write(path, (json.dumps({"image_ids": sorted(updated)}, indent=2) + "\n").encode())

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """List unfinished images in ``refreshed.jsonl``; which copy people work on, nobody knows."""
        inboxes = self._read_inboxes(delivery)
        sampled = sample_for_double_annotation(delivery.new_ids, self._double_annotation_frac, delivery.key)
        first, second = _folder_names(delivery)
        with self._open_storage() as storage:
            for name, inbox in zip((first, second), inboxes, strict=True):
                if read_complete_marker(storage, name) is None:
                    continue
                finished = {raw["image_id"] for raw in inbox.annotations}
                offered = [task for task in tasks if name == first or task.image_id in sampled]
                publish_refreshed(storage, name, [task for task in offered if task.image_id not in finished])
        return ()

    def _require_owner(self, storage: Storage) -> None:
        """Refuse what another folder of a campaign publishes; a new directory or prefix becomes this folder's."""
        owner_id, place = _read_owner(storage)
        require_provider_owner(storage.uri("outbox"), owner_id, place, own_folder(self._root))
        if owner_id is None:
            self._write_owner(storage)

    def _write_owner(self, storage: Storage) -> None:
        own = own_folder(self._root)
        if own is not None:
            content = {"owner_id": own.owner_id, "place": str(own.place)}
            storage.write(_OWNER, (json.dumps(content, indent=2) + "\n").encode())

    def _read_inboxes(self, delivery: AnnotationBatch) -> list[Inbox]:
        tasks = read_manifest(delivery.folder / MANIFEST)
        inboxes = []
        with self._open_storage() as storage:
            for name, default_annotator in zip(
                _folder_names(delivery), (_DEFAULT_ANNOTATOR, _DEFAULT_SECOND_ANNOTATOR), strict=True
            ):
                marker = read_complete_marker(storage, name)
                classes = marker.get("classes") if marker else None
                usable = classes if isinstance(classes, list) else None
                offered = offered_images(tasks, read_refreshed(storage, name))
                inboxes.append(read_inbox(storage, f"inbox/{name}", offered, usable, default_annotator))
        return inboxes

    @contextmanager
    def _open_storage(self) -> Iterator[Storage]:
        """Open the storage of the annotators; its errors become ProviderErrors."""
        try:
            yield open_storage(self._url, self._root)
        except StorageError as error:
            raise ProviderError(error.where, error.problem, error.fix, transient=error.transient) from None


def _folder_names(delivery: AnnotationBatch) -> tuple[str, str]:
    """Names of the batch's folder, and of the one with the images that a second annotator labels."""
    name = f"batch-{delivery.batch:04d}"
    return name, f"{name}-second"


def _parse_image_ids(content: bytes | None) -> set[str]:
    """Read the images withdrawn before; a broken file is written again."""
    try:
        return set() if content is None else {str(image_id) for image_id in json.loads(content)["image_ids"]}
    except (ValueError, KeyError, TypeError):
        return set()


def _read_owner(storage: Storage) -> tuple[str | None, str]:
    """Return owner id and place of the folder that publishes here; a broken file names nobody."""
    content = storage.read_optional(_OWNER)
    try:
        owner = {} if content is None else json.loads(content)
        return str(owner["owner_id"]), str(owner["place"])
    except (ValueError, KeyError, TypeError):
        return None, "another folder"
