"""The files of an inbox, each recognised by its content and read. Nothing is passed over in silence."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.folder.image_index import REVIEW_FILE, ImageIndex, ReviewMark, read_review_csv
from flows.annotation.providers.folder.parse_coco import parse_coco
from flows.annotation.providers.folder.parse_voc import parse_voc
from flows.annotation.providers.folder.parse_yolo import parse_class_names, parse_yolo
from flows.annotation.providers.folder.parsed import ParsedAnnotation, TruncatedFileError, UnsupportedFormatError
from flows.annotation.providers.folder.writers import OfferedImage, to_voc, to_yolo
from tasks.data.images import IMAGE_SUFFIXES
from tasks.storage.backends import FileEntry, Storage

_STABLE_AFTER_S = 10.0
"""A file that changed less than this ago may still be written."""
_GIVE_UP_AFTER_S = 86_400.0
"""A file that still ends too early after this is broken for good."""
_MAX_BYTES = 1 << 29
_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "obj.data"}
_CLASS_NAME_FILES = {"classes.txt", "obj.names", "names.txt", "labels.txt"}
_ARCHIVES = (".zip", ".gz", ".7z", ".rar", ".tar")


@dataclass(frozen=True)
class FileAnnotation:
    """A file and one thing it says."""

    entry: FileEntry
    parsed: ParsedAnnotation
    is_unmodified: bool = False
    """It is the very file that was handed out."""


@dataclass(frozen=True)
class FileProblem:
    """Something in a file that cannot be used, and why."""

    entry: FileEntry
    image: str
    """Image id where it is known, else what the file calls it, else the file's own name."""
    reason: str
    annotator: str | None = None


class InboxReader:
    """All files below one inbox, read once."""

    def __init__(
        self, storage: Storage, folder: str, offered: Mapping[str, OfferedImage], classes: Sequence[str] | None
    ) -> None:
        """Read them.

        Args:
            place: where.
            folder: ``inbox/batch-0003``; need not exist yet.
            offered: the images of the batch by id.
            classes: class names by number as the batch went out; None where that is not known any more.

        Raises:
            ProviderError: the place is out of reach.
        """
        self.image_index = ImageIndex(offered.values())
        self.annotations: list[FileAnnotation] = []
        self.marks: dict[str, tuple[FileEntry, ReviewMark]] = {}
        """What ``reviewed.csv`` says, by image id."""
        self.problems: list[FileProblem] = []
        self.unfinished: list[str] = []
        """Files that are not whole yet, in words."""
        self._storage, self._offered, self._classes = storage, offered, classes
        self._class_lists: dict[str, list[str]] = {}
        # Class names and marks first: the other files are read by their light.
        for entry in sorted(
            self._stable_files(folder), key=lambda entry: (not _is_metadata(entry.name), entry.modified_at)
        ):
            self._read_file(entry)

    def find_image_id(self, parsed: ParsedAnnotation) -> str | None:
        """The image that is meant, by the first of its names that means one."""
        return self.image_index.find(parsed.image) or (
            self.image_index.find(parsed.alternative_name) if parsed.alternative_name else None
        )

    def _stable_files(self, folder: str) -> list[FileEntry]:
        """Files nobody is writing any more; with a moment's patience where that is about to be so."""
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

    def _read_file(self, entry: FileEntry) -> None:
        try:
            content = self._read_content(entry)
            if _is_metadata(entry.name):
                self._read_metadata(entry, content)
            elif not (entry.name.lower().endswith(".txt") and _is_image_list(content)):
                self.annotations += self._parse(entry, content)
        except TruncatedFileError as problem:
            if _age_s(entry) < _GIVE_UP_AFTER_S:
                self.unfinished.append(f"{entry.name}: {problem}")
            else:
                self.problems.append(FileProblem(entry, entry.name, f"{problem}, expected a whole file"))
        except UnsupportedFormatError as problem:
            self.problems.append(FileProblem(entry, entry.name, str(problem)))

    def _read_content(self, entry: FileEntry) -> bytes:
        if entry.size_bytes > _MAX_BYTES:
            raise UnsupportedFormatError(f"the file is {entry.size_bytes} bytes long, expected at most {_MAX_BYTES}")
        try:
            return self._storage.read(entry)
        except ProviderError as error:
            if error.transient:
                raise
            raise UnsupportedFormatError(error.problem) from None

    def _read_metadata(self, entry: FileEntry, content: bytes) -> None:
        pure = PurePosixPath(entry.name)
        if pure.name.lower() != REVIEW_FILE:
            self._class_lists[str(pure.parent)] = parse_class_names(content, pure.name)
            return
        for mark in read_review_csv(content):
            is_wildcard = mark.image == "*"
            found = self.image_index.find(mark.image)
            if found is None and not is_wildcard:
                reason = f"image is {mark.image[:100]!r}, expected one of the batch"
                self.problems.append(FileProblem(entry, mark.image, reason, mark.annotator))
            for image_id in self._offered if is_wildcard else [found] if found else []:
                if not is_wildcard or image_id not in self.marks:  # a line of its own says more
                    self.marks[image_id] = entry, mark

    def _parse(self, entry: FileEntry, content: bytes) -> Iterator[FileAnnotation]:
        """What a file says, recognised by how it begins."""
        start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        suffix = PurePosixPath(entry.name).suffix.lower()
        if start in (b"{", b"["):
            yield from (FileAnnotation(entry, parsed) for parsed in parse_coco(content))
        elif start == b"<":
            yield self._single(entry, parse_voc(content, entry.name), content)
        elif not start and suffix in (".json", ".xml"):
            raise TruncatedFileError("the file is empty")
        elif suffix == ".txt":
            yield self._single(entry, self._parse_yolo(entry, content), content)
        else:
            hint = " (unpack it)" if suffix in _ARCHIVES else ""
            raise UnsupportedFormatError(f"the file is none of COCO, VOC and YOLO, expected one of them{hint}")

    def _single(self, entry: FileEntry, parsed: ParsedAnnotation, content: bytes) -> FileAnnotation:
        image = self._offered.get(self.find_image_id(parsed) or "")
        published = (
            () if image is None else (to_voc(image), to_yolo(image.task, self._classes) if self._classes else b"")
        )
        return FileAnnotation(entry, parsed, is_unmodified=bool(content) and content in published)

    def _parse_yolo(self, entry: FileEntry, content: bytes) -> ParsedAnnotation:
        image_id = self.image_index.find(entry.name)
        if image_id is None:
            return ParsedAnnotation(entry.name)  # its name is its trouble
        parents = [str(parent) for parent in PurePosixPath(entry.name).parents]
        nearest = next((self._class_lists[parent] for parent in parents if parent in self._class_lists), self._classes)
        if nearest is None:
            problem = "the meaning of its class numbers is unknown, expected a data.yaml or classes.txt beside it"
            return ParsedAnnotation(entry.name, problem=problem)
        task = self._offered[image_id].task
        return parse_yolo(content, entry.name, nearest, (task.width_px, task.height_px))


def _age_s(entry: FileEntry) -> float:
    return (datetime.now(UTC) - entry.modified_at).total_seconds()


def _is_ignored(name: str) -> bool:
    """What systems and tools leave about, and pictures that were exported along with the answers."""
    pure = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in pure.parts)
    return hidden or pure.name.lower() in _IGNORED_NAMES or pure.suffix.lower() in IMAGE_SUFFIXES


def _is_metadata(name: str) -> bool:
    """Whether a file holds class names or marks rather than answers."""
    last = PurePosixPath(name).name.lower()
    return last == REVIEW_FILE or last in _CLASS_NAME_FILES or last.endswith((".yaml", ".yml"))


def _is_image_list(content: bytes) -> bool:
    """``train.txt`` and its like, which tools write beside YOLO files: nothing but names of pictures."""
    lines = content.decode("utf-8", "replace").split("\n")
    names = [line.strip().lower() for line in lines if line.strip()]
    return bool(names) and all(PurePosixPath(name).suffix in IMAGE_SUFFIXES for name in names)
