"""Read the files of an inbox: list those that are complete, recognize their format, find their images.

Every file ends as annotations, as a problem, or as a file to be read later, except side files of known tools. Problems
of one kind in one file become one, so that an export of a whole project is one entry. ``folder.py`` decides what counts
as finished. Zip archives are read in place: each file in one becomes an entry, as if it had been unpacked there.
Nothing is written, so a second collection finds the same. Names in archives are text for messages, never paths.
"""

import csv
import heapq
import io
import logging
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from flows.annotation.providers.folder_outbox import OfferedImage
from tasks.data.archives import ArchiveLimits, ZipSource
from tasks.data.errors import ArchiveError, TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedDocument, ParsedImage
from tasks.data.formats.coco import parse_coco
from tasks.data.formats.decoding import decode_text
from tasks.data.formats.detect import ONE_FILE
from tasks.data.formats.dota import parse_dota
from tasks.data.formats.recognize import is_image, recognize
from tasks.data.formats.visdrone import parse_visdrone
from tasks.data.formats.voc import parse_voc
from tasks.data.formats.yolo import YoloClasses, parse_yolo, parse_yolo_classes
from tasks.data.names import ImageIndex, printable
from tasks.storage.backends import FileEntry, Storage, StorageError

_log = logging.getLogger(__name__)

REVIEW_FILE = "reviewed.csv"
"""The annotators' own list of finished images, a line per image; ``*`` in column ``image`` is the whole batch."""
_REVIEW_COLUMNS = ("image", "status", "annotator", "seconds_spent", "finished_at")

_STABLE_AFTER_S = 10.0
"""A file that changed less than this ago may still be written."""
_GIVE_UP_AFTER_S = 86_400.0
"""A truncated file that has not changed for this long is reported as broken."""
_MAX_BYTES = 1 << 29
_MAX_EXAMPLES = 5
"""Images named in a problem that stands for many."""
_SAMPLE_BYTES = 1 << 16
"""Bytes at both ends of a long file from which its format is recognized."""
_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini"})
_CLASS_NAME_LISTS = frozenset({"classes.txt", "names.txt", "predefined_classes.txt", "obj.names"})
_ARCHIVES = frozenset({".gz", ".7z", ".rar", ".tar"})
_LIMITS = ArchiveLimits(max_files=200_000, max_file_bytes=1 << 29, max_total_bytes=1 << 33)
_MAGIC = b"PK"
_IMAGE_PARSERS = {"dota": parse_dota, "visdrone": parse_visdrone}
_EXPECTED = "COCO, Pascal VOC, YOLO, DOTA, VisDrone, Label Studio JSON, CVAT XML or a Ground Truth manifest"


ProblemKind = Literal[
    "images that are not of this batch",
    "files of images that are not of this batch",
    "image names that are not clear",
    "entries without an image name",
    "annotations of images that the file does not list",
]


@dataclass(frozen=True)
class FileAnnotation:
    """What a file states about one image of the batch."""

    entry: FileEntry
    image_id: str
    parsed: ParsedImage
    """Boxes in pixels."""


@dataclass(frozen=True)
class FileProblem:
    """A file, or an entry of one, that cannot be used."""

    entry: FileEntry
    image: str
    """Image id where it is known, else the name in the file, else the file's own name."""
    reason: str
    annotator: str | None = None
    kind: ProblemKind | None = None
    """Problems of one kind in one place become one; None: this one stands alone."""

    @property
    def place(self) -> str:
        """Where problems of its kind are joined: the file; for exports with a file per image, the folder or archive."""
        if self.kind == "files of images that are not of this batch":
            return self.entry.name.rpartition("/")[0].partition("/")[0]
        return self.entry.name


@dataclass(frozen=True)
class ReviewMark:
    """One line of ``reviewed.csv``."""

    image: str
    status: str | None
    annotator: str | None
    seconds_spent: float | str | None
    """Text where it is no number; validation refuses that."""
    finished_at: str | None


def read_review_csv(content: bytes, file_name: str) -> list[ReviewMark]:
    """Read a ``reviewed.csv`` with commas, semicolons or tabs between the columns.

    Raises:
        UnsupportedFormatError: column ``image`` is missing, a column is unknown, or the file is no CSV.
    """
    text = decode_text(content)[0]
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = [(name or "").strip() for name in rows.fieldnames or ()]
    except csv.Error as error:
        raise UnsupportedFormatError(file_name, f"the content is no CSV ({error})") from None
    unknown = [name for name in columns if name not in _REVIEW_COLUMNS]
    if "image" not in columns or unknown:
        expected = f"expected image and optionally {', '.join(_REVIEW_COLUMNS[1:])}"
        raise UnsupportedFormatError(file_name, f"the columns are {columns}, {expected}")
    rows.fieldnames = columns
    marks = []
    try:
        for row in rows:
            image, status, annotator, seconds, finished_at = (
                (row.get(key) or "").strip() or None for key in _REVIEW_COLUMNS
            )
            if image:
                marks.append(ReviewMark(image, status, annotator, _number_or_text(seconds), finished_at))
    except csv.Error as error:
        raise UnsupportedFormatError(file_name, f"the content is no CSV ({error})") from None
    return marks


def _number_or_text(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


class FoundImage(NamedTuple):
    """The image of the batch that an entry refers to, or the reason why none was found."""

    image_id: str | None
    reason: str = ""
    kind: ProblemKind | None = None


class BatchIndex:
    """Finds the images of a batch by the names that tools write. Names are looked up, never opened."""

    def __init__(self, offered: Mapping[str, OfferedImage]) -> None:
        """Index file names and image ids; ``offered`` is by image id."""
        self._id_of = {image.file_name: image_id for image_id, image in offered.items()}
        # A copied image is named by its id already, one in a bucket is not.
        stems = {PurePosixPath(name).stem for name in self._id_of}
        self._id_of |= {image_id: image_id for image_id in offered if image_id not in stems}
        self._ids = frozenset(offered)
        self._index = ImageIndex(self._id_of)

    def find(self, name: str, alternatives: Sequence[str] = ()) -> str | None:
        """Return the id of the one image that a name fits; None: of no image, or of several."""
        found = self._index.find(name, alternatives).found
        return None if found is None else self._id_of[found]

    def find_all(self, images: Sequence[ParsedImage]) -> list[FoundImage]:
        """Find each image of a document.

        Two different names in one document never mean the same image: the surer match has it, and if both are equally
        sure, none.
        """
        matches = self._index.match_all([(image.name, image.alternative_names) for image in images])
        results: list[FoundImage] = []
        names_of: dict[str, set[str]] = defaultdict(set)
        for image, match in zip(images, matches, strict=True):
            by_name = None if match.found is None else self._id_of[match.found]
            image_id = image.image_id if image.image_id in self._ids else by_name
            if image_id is not None:
                names_of[image_id].add(image.name)
                results.append(FoundImage(image_id))
            elif match.candidates:
                results.append(FoundImage(None, match.problem or "", "image names that are not clear"))
            else:
                problem = f"the image name is {image.name[:100]!r}, expected an image id or file name of this batch"
                results.append(FoundImage(None, problem, "images that are not of this batch"))
        return [
            _unclear(found.image_id, names_of[found.image_id])
            if found.image_id is not None and len(names_of[found.image_id]) > 1
            else found
            for found in results
        ]


def _unclear(image_id: str, names: Collection[str]) -> FoundImage:
    listed = ", ".join(sorted(names)[:_MAX_EXAMPLES])
    reason = f"several names mean the image {image_id}: {listed}, expected one"
    return FoundImage(None, reason, "image names that are not clear")


class InboxReader:
    """Reads all files below one inbox, once."""

    def __init__(
        self, storage: Storage, folder: str, offered: Mapping[str, OfferedImage], classes: Sequence[str] | None
    ) -> None:
        """Read the files.

        Args:
            storage: of the annotators.
            folder: ``inbox/batch-0003``; need not exist.
            offered: the images of the batch, by id.
            classes: class names by number, as published with the batch; None where that is unknown.

        Raises:
            StorageError: the storage does not answer.
        """
        self.annotations: list[FileAnnotation] = []
        self.marks: dict[str, tuple[FileEntry, ReviewMark]] = {}
        """Lines of ``reviewed.csv``, by image id."""
        self.problems: list[FileProblem] = []
        self.unfinished: list[str] = []
        """Messages about files that are not complete yet."""
        self._storage, self._offered = storage, offered
        self._index = BatchIndex(offered)
        self._class_lists: dict[str, YoloClasses] = {}
        """By folder."""
        self._published_classes = None if classes is None else YoloClasses(tuple(classes), {})
        for entry in _in_reading_order(self._stable_files(folder)):
            if is_archive(entry.name):
                self._read_archive(entry)
            else:
                self._read_file(entry, self._storage.read)
        self.problems = _join_by_kind(self.problems)

    def _stable_files(self, folder: str) -> list[FileEntry]:
        """List the files that nobody is writing; wait a moment where one has just changed."""
        entries = [entry for entry in self._storage.list_files(folder) if not _is_ignored(entry.name)]
        youngest_s = min((_age_s(entry) for entry in entries), default=_STABLE_AFTER_S)
        if youngest_s >= _STABLE_AFTER_S:
            return entries
        time.sleep(min(_STABLE_AFTER_S - youngest_s, _STABLE_AFTER_S))
        versions = {entry.name: entry.etag for entry in entries}
        later = [entry for entry in self._storage.list_files(folder) if not _is_ignored(entry.name)]
        stable = [entry for entry in later if versions.get(entry.name) == entry.etag]
        self.unfinished += [f"{entry.name} is still being written" for entry in later if entry not in stable]
        return stable

    def _read_archive(self, entry: FileEntry) -> None:
        """Read the files of an archive as if they had been unpacked; what is wrong with it is a problem of its name."""
        with self._collect_problems(entry):
            archive = InboxArchive(entry, self._read_content(entry, self._storage.read))
            for member in _in_reading_order(archive.entries()):
                if is_archive(member.name):
                    problem = "the file is an archive inside an archive, expected one level"
                    self.problems.append(FileProblem(member, member.name, problem))
                elif not _is_ignored(member.name):
                    self._read_file(member, archive.read)

    def _read_file(self, entry: FileEntry, read: Callable[[FileEntry], bytes]) -> None:
        """Read one file; whatever is wrong with it becomes a problem of this file alone."""
        with self._collect_problems(entry):
            content = self._read_content(entry, read)
            if PurePosixPath(entry.name).name.lower() == REVIEW_FILE:
                self._add_marks(entry, read_review_csv(content, entry.name))
            else:
                self._add_annotations(entry, content)

    @contextmanager
    def _collect_problems(self, entry: FileEntry) -> Iterator[None]:
        try:
            yield
        except TruncatedFileError as error:
            if _age_s(entry) < _GIVE_UP_AFTER_S:
                self.unfinished.append(f"{entry.name}: {error.problem}")
            else:
                self.problems.append(FileProblem(entry, entry.name, error.problem))
        except UnsupportedFormatError as error:
            self.problems.append(FileProblem(entry, entry.name, error.problem))
        except StorageError:
            raise
        except Exception as error:  # a fault of a reader must not keep back the labels of the other files
            _log.exception("%s cannot be read", entry.name)
            problem = f"reading failed ({type(error).__name__}), expected {_EXPECTED}"
            self.problems.append(FileProblem(entry, entry.name, problem))

    def _read_content(self, entry: FileEntry, read: Callable[[FileEntry], bytes]) -> bytes:
        if entry.size_bytes > _MAX_BYTES:
            problem = f"the size is {entry.size_bytes} bytes, expected at most {_MAX_BYTES}"
            raise UnsupportedFormatError(entry.name, problem)
        try:
            return read(entry)
        except StorageError as error:
            if error.transient:
                raise
            raise UnsupportedFormatError(entry.name, error.problem) from None

    def _add_marks(self, entry: FileEntry, marks: Sequence[ReviewMark]) -> None:
        for mark in marks:
            if mark.image == "*":
                for image_id in self._offered:
                    self.marks.setdefault(image_id, (entry, mark))  # a line of its own has priority
                continue
            found = self._index.find(mark.image)
            if found is None:
                reason = f"image is {mark.image[:100]!r}, expected one of the batch"
                kind: ProblemKind = "images that are not of this batch"
                self.problems.append(FileProblem(entry, mark.image, reason, mark.annotator, kind))
            else:
                self.marks[found] = entry, mark

    def _add_annotations(self, entry: FileEntry, content: bytes) -> None:
        images = list(self._parse(entry, content))
        for parsed, (image_id, reason, kind) in zip(images, self._index.find_all(images), strict=True):
            if image_id is None:
                if not parsed.name and parsed.problems:  # what is wrong with the entry says more than the missing name
                    reason = f"{parsed.entry.removeprefix(f'{entry.name}: ')}: {parsed.problems[0]}"
                    kind = "entries without an image name"
                elif parsed.name == entry.name and kind == "images that are not of this batch":
                    kind = "files of images that are not of this batch"
                self.problems.append(FileProblem(entry, parsed.name or entry.name, reason, parsed.annotator, kind))
                continue
            task = self._offered[image_id].task
            sized = parsed.with_size(task.width_px, task.height_px)
            self.annotations.append(FileAnnotation(entry, image_id, sized))

    def _parse(self, entry: FileEntry, content: bytes) -> Iterator[ParsedImage]:
        """Yield what a file states about images, in the format recognized by its content."""
        whole = content if len(content) <= _SAMPLE_BYTES else None
        kind = recognize(entry.name, content[:_SAMPLE_BYTES], content[-_SAMPLE_BYTES:], whole)
        suffix, start = PurePosixPath(entry.name).suffix.lower(), decode_text(content[:100])[0].lstrip()[:1]
        if kind in ("image_list", "side"):
            return
        if kind == "yolo_classes":
            self._class_lists[str(PurePosixPath(entry.name).parent)] = parse_yolo_classes(content, entry.name)
        elif kind in ONE_FILE:
            yield from self._document(entry, ONE_FILE[kind](content, entry.name))
        elif kind in _IMAGE_PARSERS:
            yield _IMAGE_PARSERS[kind](content, entry.name)
        elif kind in ("yolo", "blank") or (suffix == ".txt" and self._index.find(entry.name)):
            yield self._parse_yolo(entry, content)
        elif kind == "voc" or start == "<":
            yield parse_voc(content, entry.name)
        elif start in ("{", "[") and not kind.startswith("unsupported:"):
            yield from self._document(entry, parse_coco(content, entry.name))  # says what is wrong with the JSON
        elif not start and suffix in (".json", ".xml"):
            raise TruncatedFileError(entry.name, "the file is blank, expected a whole file")
        else:
            found = kind.removeprefix("unsupported:") if kind.startswith("unsupported:") else "unknown"
            hint = " (unpack the archive, or use zip)" if suffix in _ARCHIVES else ""
            raise UnsupportedFormatError(entry.name, f"the format is {found}, expected {_EXPECTED}{hint}")

    def _document(self, entry: FileEntry, document: ParsedDocument) -> Iterator[ParsedImage]:
        """Yield the images of a document; boxes that belong to none of them are problems."""
        for stray in document.strays:
            where = stray.entry.removeprefix(f"{entry.name}: ")
            kind: ProblemKind = "annotations of images that the file does not list"
            self.problems.append(FileProblem(entry, where, f"{where}: {stray.text}", document.annotator, kind))
        yield from document.images

    def _parse_yolo(self, entry: FileEntry, content: bytes) -> ParsedImage:
        parents = [str(parent) for parent in PurePosixPath(entry.name).parents]
        nearest = (self._class_lists[parent] for parent in parents if parent in self._class_lists)
        classes = next(nearest, self._published_classes)
        if classes is None and content.strip():
            problem = "the meaning of its class numbers is unknown, expected data.yaml or classes.txt beside it"
            return ParsedImage(entry.name, entry.name, problems=(problem,))
        return parse_yolo(content, entry.name, classes or YoloClasses((), {}))


def _join_by_kind(problems: Iterable[FileProblem]) -> list[FileProblem]:
    """Join problems of one kind and place to one with their number and some examples, the same in any order."""
    joined: list[FileProblem] = []
    groups: dict[tuple[str, ProblemKind], list[FileProblem]] = defaultdict(list)
    for problem in problems:
        if problem.kind is None:
            joined.append(problem)
        else:
            groups[problem.place, problem.kind].append(problem)
    for (_, kind), group in groups.items():
        first, *examples = heapq.nsmallest(_MAX_EXAMPLES, group, key=lambda one: (one.entry.name, one.image))
        if examples:
            others = ", ".join(repr(problem.image[:100]) for problem in examples)
            reason = f"{kind}: {len(group)}, expected none. The first: {first.reason}; others: {others}"
            first = replace(first, image=first.entry.name, reason=reason)
        joined.append(first)
    return joined


def _in_reading_order(entries: Iterable[FileEntry]) -> list[FileEntry]:
    """Class names and review marks first: they are needed to read the other files."""
    return sorted(entries, key=lambda entry: (not _is_read_first(entry.name), entry.modified_at))


def _age_s(entry: FileEntry) -> float:
    return (datetime.now(UTC) - entry.modified_at).total_seconds()


def _is_ignored(name: str) -> bool:
    """Whether a file comes from an operating system, or is a picture that was exported with the annotations."""
    pure = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in pure.parts)
    return hidden or pure.name.lower() in _IGNORED_NAMES or is_image(name)


def _is_read_first(name: str) -> bool:
    last = PurePosixPath(name).name.lower()
    return last == REVIEW_FILE or last in _CLASS_NAME_LISTS or last.endswith((".yaml", ".yml"))


def is_archive(name: str) -> bool:
    """Whether a file is called like a zip archive."""
    return PurePosixPath(name).suffix.lower() == ".zip"


class InboxArchive:
    """The files of one archive."""

    def __init__(self, entry: FileEntry, content: bytes) -> None:
        """Read the table of contents.

        Raises:
            TruncatedFileError: the archive ends too early.
            UnsupportedFormatError: no zip, broken, encrypted, beyond the limits, or with names that leave the archive.
        """
        if not zipfile.is_zipfile(io.BytesIO(content)):
            if content.startswith(_MAGIC) or not content:
                raise TruncatedFileError(entry.name, "the archive has no end, expected a whole zip")
            raise UnsupportedFormatError(entry.name, "the content is no zip archive, expected one")
        try:
            self._source = ZipSource(PurePosixPath(entry.name).name, _LIMITS, io.BytesIO(content))
        except ArchiveError as error:
            raise UnsupportedFormatError(entry.name, error.problem) from None
        self._entry = entry

    def entries(self) -> list[FileEntry]:
        """List the files; they are as old as the archive."""
        archive = self._entry
        return [
            FileEntry(
                name=f"{archive.name}/{printable(name)}",
                size_bytes=self._source.size(name),
                modified_at=archive.modified_at,
                etag=archive.etag,
                locator=name,
            )
            for name in self._source.names()
        ]

    def read(self, entry: FileEntry) -> bytes:
        """Return the content of one of ``entries``.

        Raises:
            UnsupportedFormatError: it cannot be unpacked.
        """
        try:
            return self._source.read(entry.locator)
        except ArchiveError as error:
            raise UnsupportedFormatError(entry.name, error.problem) from None
