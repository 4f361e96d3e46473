"""The files of an inbox, each recognised by its content and read. Nothing is passed over in silence."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from flows.labels.providers.base import ProviderError
from flows.labels.providers.folder.layouts import Offered, voc, yolo
from flows.labels.providers.folder.names import REVIEWED, ImageNames, Mark, read_marks
from flows.labels.providers.folder.place import Entry, Place
from flows.labels.providers.folder.said import CutOffError, NotUnderstoodError, Said
from flows.labels.providers.folder.said_by_coco import said_by_coco
from flows.labels.providers.folder.said_by_voc import said_by_voc
from flows.labels.providers.folder.said_by_yolo import class_names, said_by_yolo
from tasks.images import SUFFIXES

_QUIET_S = 10.0
"""A file that changed less than this ago may still be written."""
_PATIENCE_S = 86_400.0
"""A file that still ends too early after this is broken for good."""
_MAX_BYTES = 1 << 29
_LITTER = {"thumbs.db", "desktop.ini", "obj.data"}
_NAME_LISTS = {"classes.txt", "obj.names", "names.txt", "labels.txt"}
_PACKED = (".zip", ".gz", ".7z", ".rar", ".tar")


@dataclass(frozen=True)
class Source:
    """A file and one thing it says."""

    entry: Entry
    said: Said
    is_untouched: bool = False
    """It is the very file that was handed out."""


@dataclass(frozen=True)
class Trouble:
    """Something in a file that cannot be used, and why."""

    entry: Entry
    image: str
    """Image id where it is known, else what the file calls it, else the file's own name."""
    reason: str
    annotator: str | None = None


class InboxFiles:
    """All files below one inbox, read once."""

    def __init__(
        self, place: Place, folder: str, offered: Mapping[str, Offered], classes: Sequence[str] | None
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
        self.names = ImageNames(offered.values())
        self.sources: list[Source] = []
        self.marks: dict[str, tuple[Entry, Mark]] = {}
        """What ``reviewed.csv`` says, by image id."""
        self.troubles: list[Trouble] = []
        self.waiting: list[str] = []
        """Files that are not whole yet, in words."""
        self._place, self._offered, self._classes = place, offered, classes
        self._class_lists: dict[str, list[str]] = {}
        # Class names and marks first: the other files are read by their light.
        for entry in sorted(self._settled(folder), key=lambda entry: (not _is_aside(entry.name), entry.modified_at)):
            self._take(entry)

    def image_id_of(self, said: Said) -> str | None:
        """The image that is meant, by the first of its names that means one."""
        return self.names.find(said.image) or (self.names.find(said.other_name) if said.other_name else None)

    def _settled(self, folder: str) -> list[Entry]:
        """Files nobody is writing any more; with a moment's patience where that is about to be so."""
        entries = [entry for entry in self._place.entries(folder) if not _is_litter(entry.name)]
        youngest_s = min((_age_s(entry) for entry in entries), default=_QUIET_S)
        if youngest_s >= _QUIET_S:
            return entries
        time.sleep(min(_QUIET_S - youngest_s, _QUIET_S))
        versions = {entry.name: entry.version for entry in entries}
        later = [entry for entry in self._place.entries(folder) if not _is_litter(entry.name)]
        quiet = [entry for entry in later if versions.get(entry.name) == entry.version]
        self.waiting += [f"{entry.name} is still being written" for entry in later if entry not in quiet]
        return quiet

    def _take(self, entry: Entry) -> None:
        try:
            content = self._content(entry)
            if _is_aside(entry.name):
                self._learn(entry, content)
            elif not (entry.name.lower().endswith(".txt") and _lists_pictures(content)):
                self.sources += self._said(entry, content)
        except CutOffError as problem:
            if _age_s(entry) < _PATIENCE_S:
                self.waiting.append(f"{entry.name}: {problem}")
            else:
                self.troubles.append(Trouble(entry, entry.name, f"{problem}, expected a whole file"))
        except NotUnderstoodError as problem:
            self.troubles.append(Trouble(entry, entry.name, str(problem)))

    def _content(self, entry: Entry) -> bytes:
        if entry.bytes > _MAX_BYTES:
            raise NotUnderstoodError(f"the file is {entry.bytes} bytes long, expected at most {_MAX_BYTES}")
        try:
            return self._place.read(entry)
        except ProviderError as error:
            if error.transient:
                raise
            raise NotUnderstoodError(error.problem) from None

    def _learn(self, entry: Entry, content: bytes) -> None:
        pure = PurePosixPath(entry.name)
        if pure.name.lower() != REVIEWED:
            self._class_lists[str(pure.parent)] = class_names(content, pure.name)
            return
        for mark in read_marks(content):
            everything = mark.image == "*"
            found = self.names.find(mark.image)
            if found is None and not everything:
                reason = f"image is {mark.image[:100]!r}, expected one of the batch"
                self.troubles.append(Trouble(entry, mark.image, reason, mark.annotator))
            for image_id in self._offered if everything else [found] if found else []:
                if not everything or image_id not in self.marks:  # a line of its own says more
                    self.marks[image_id] = entry, mark

    def _said(self, entry: Entry, content: bytes) -> Iterator[Source]:
        """What a file says, recognised by how it begins."""
        start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        suffix = PurePosixPath(entry.name).suffix.lower()
        if start in (b"{", b"["):
            yield from (Source(entry, said) for said in said_by_coco(content))
        elif start == b"<":
            yield self._alone(entry, said_by_voc(content, entry.name), content)
        elif not start and suffix in (".json", ".xml"):
            raise CutOffError("the file is empty")
        elif suffix == ".txt":
            yield self._alone(entry, self._yolo(entry, content), content)
        else:
            hint = " (unpack it)" if suffix in _PACKED else ""
            raise NotUnderstoodError(f"the file is none of COCO, VOC and YOLO, expected one of them{hint}")

    def _alone(self, entry: Entry, said: Said, content: bytes) -> Source:
        image = self._offered.get(self.image_id_of(said) or "")
        ours = () if image is None else (voc(image), yolo(image.task, self._classes) if self._classes else b"")
        return Source(entry, said, is_untouched=bool(content) and content in ours)

    def _yolo(self, entry: Entry, content: bytes) -> Said:
        image_id = self.names.find(entry.name)
        if image_id is None:
            return Said(entry.name)  # its name is its trouble
        parents = [str(parent) for parent in PurePosixPath(entry.name).parents]
        nearest = next((self._class_lists[parent] for parent in parents if parent in self._class_lists), self._classes)
        if nearest is None:
            problem = "the meaning of its class numbers is unknown, expected a data.yaml or classes.txt beside it"
            return Said(entry.name, problem=problem)
        task = self._offered[image_id].task
        return said_by_yolo(content, entry.name, nearest, (task.width_px, task.height_px))


def _age_s(entry: Entry) -> float:
    return (datetime.now(UTC) - entry.modified_at).total_seconds()


def _is_litter(name: str) -> bool:
    """What systems and tools leave about, and pictures that were exported along with the answers."""
    pure = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in pure.parts)
    return hidden or pure.name.lower() in _LITTER or pure.suffix.lower() in SUFFIXES


def _is_aside(name: str) -> bool:
    """Whether a file holds class names or marks rather than answers."""
    last = PurePosixPath(name).name.lower()
    return last == REVIEWED or last in _NAME_LISTS or last.endswith((".yaml", ".yml"))


def _lists_pictures(content: bytes) -> bool:
    """``train.txt`` and its like, which tools write beside YOLO files: nothing but names of pictures."""
    lines = content.decode("utf-8", "replace").split("\n")
    names = [line.strip().lower() for line in lines if line.strip()]
    return bool(names) and all(PurePosixPath(name).suffix in SUFFIXES for name in names)
