"""Open a folder or a zip archive as named files, with limits on size, number and names; nothing is unpacked."""

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from tasks.data.errors import ArchiveError

_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_UTF8_FLAG = 0x800


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold at most; beyond it is a mistake or an attack."""

    max_files: int = 2_000_000
    max_file_bytes: int = 4 << 30
    max_total_bytes: int = 1 << 39
    max_ratio: float = 500.0
    """Bytes unpacked for a byte packed, of files over 1 MB."""
    max_name_length: int = 1024


class FileSource(Protocol):
    """Files by relative name with forward slashes, wherever they lie."""

    where: str
    """Name of the folder or archive, for messages."""

    def names(self) -> Sequence[str]:
        """Return all names, sorted; hidden files and what systems leave about are left out."""
        ...

    def size(self, name: str) -> int:
        """Return the number of bytes of a file."""
        ...

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Return the content of a file, or its first ``max_bytes``."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


def open_source(path: Path, limits: ArchiveLimits | None = None, *, follow_links: bool = False) -> FileSource:
    """Open a folder, or a zip archive.

    Args:
        path: of the folder or archive.
        limits: of archives; None: the usual ones.
        follow_links: whether links to files and folders are followed.

    Raises:
        ArchiveError: missing, neither folder nor zip, broken, encrypted, or beyond the limits.
    """
    if path.is_dir():
        return FolderSource(path, follow_links=follow_links)
    if not path.is_file():
        raise ArchiveError(path, "the path is missing, expected a folder or a zip archive")
    if not zipfile.is_zipfile(path):
        raise ArchiveError(path, "the file is no zip archive, expected a folder or a zip archive", "Unpack it first.")
    return ZipSource(path.name, limits or ArchiveLimits(), path)


class FolderSource:
    """The files below a folder. Names that are no UTF-8 keep their bytes as Python's surrogate escapes."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        """List the files; links are passed over unless they are to be followed."""
        self.where, self.root = root.name or str(root), root
        self.skipped_links: list[str] = []
        """Links that were not followed."""
        self._follow_links = follow_links
        self._names = sorted(self._walk())
        self._known = frozenset(self._names)

    def names(self) -> Sequence[str]:
        """Return all names, sorted."""
        return self._names

    def path(self, name: str) -> Path:
        """Return where a file lies.

        Raises:
            ArchiveError: the folder holds no such file.
        """
        if name not in self._known:
            raise ArchiveError(self.where, f"the file {name[:200]!r} is missing, expected a file of the folder")
        return self.root / name

    def size(self, name: str) -> int:
        """Return the number of bytes of a file."""
        try:
            return self.path(name).stat().st_size
        except OSError as error:
            raise _unreadable(self.where, name, error) from None

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Return the content of a file, or its first bytes."""
        try:
            with self.path(name).open("rb") as stream:
                return stream.read() if max_bytes is None else stream.read(max_bytes)
        except OSError as error:
            raise _unreadable(self.where, name, error) from None

    def close(self) -> None:
        """Nothing is open."""

    def _walk(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        for folder, subfolders, found in os.walk(self.root, followlinks=self._follow_links):
            if self._follow_links:  # a link to a folder above would never end
                facts = os.stat(folder)
                if (facts.st_dev, facts.st_ino) in seen:
                    subfolders.clear()
                    continue
                seen.add((facts.st_dev, facts.st_ino))
            prefix = "" if Path(folder) == self.root else Path(folder).relative_to(self.root).as_posix() + "/"
            for name in list(subfolders):
                if is_junk(name):
                    subfolders.remove(name)
                elif not self._follow_links and Path(folder, name).is_symlink():
                    self.skipped_links.append(prefix + name)
            for name in found:
                if is_junk(name):
                    continue
                path = Path(folder, name)
                if not self._follow_links and path.is_symlink():
                    self.skipped_links.append(prefix + name)
                elif path.is_file():
                    yield prefix + name


class ZipSource:
    """The files of a zip archive, read in place."""

    def __init__(self, where: str, limits: ArchiveLimits, content: Path | BinaryIO) -> None:
        """Open the archive and hold its table of contents against the limits.

        Args:
            where: name of the archive, for messages.
            limits: what it may hold.
            content: its path, or a stream with its bytes.

        Raises:
            ArchiveError: broken, encrypted, beyond the limits, or with a name that leaves the archive.
        """
        self.where = where
        try:
            self._archive = zipfile.ZipFile(content)
            self._entries = self._checked(limits)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
            raise ArchiveError(where, f"the archive is unreadable ({error}), expected a whole zip") from None
        self._names = sorted(self._entries)

    def names(self) -> Sequence[str]:
        """Return all names, sorted."""
        return self._names

    def size(self, name: str) -> int:
        """Return the number of bytes a file has unpacked."""
        return self._entry(name).file_size

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Return the content of a file, or its first bytes; never more than its entry states."""
        entry = self._entry(name)
        limit = entry.file_size if max_bytes is None else min(max_bytes, entry.file_size)
        try:
            with self._archive.open(entry) as stream:
                content = stream.read(limit)
                if max_bytes is None and stream.read(1):
                    raise ArchiveError(self.where, f"the file {name!r} is longer than its entry states")
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            raise _unreadable(self.where, name, error) from None
        except Exception as error:  # zlib.error, lzma.LZMAError and whatever else a decoder has
            if isinstance(error, ArchiveError):
                raise
            raise _unreadable(self.where, name, error) from None
        return content

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, for copying it out piece by piece."""
        stream: BinaryIO = self._archive.open(self._entry(name))  # type: ignore[assignment]
        return stream

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise ArchiveError(self.where, f"the file {name[:200]!r} is missing, expected a file of the archive")
        return self._entries[name]

    def _checked(self, limits: ArchiveLimits) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        listed = self._archive.infolist()
        if len(listed) > limits.max_files:
            raise self._beyond(f"the number of files is {len(listed)}", limits.max_files)
        total = 0
        for entry in listed:
            name = _entry_name(entry)
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or ":" in parts[0] or "\x00" in name:
                raise ArchiveError(self.where, f"a name is {name[:200]!r}, expected a path inside the archive")
            if entry.is_dir() or any(is_junk(part) for part in parts) or stat.S_ISLNK(entry.external_attr >> 16):
                continue
            if len(name) > limits.max_name_length:
                raise self._beyond(f"a name is {len(name)} characters long", limits.max_name_length)
            if entry.flag_bits & 0x1:
                raise ArchiveError(self.where, "the archive is encrypted, expected a plain zip", "Unpack it first.")
            if entry.file_size > limits.max_file_bytes:
                raise self._beyond(f"the file {name[:200]!r} has {entry.file_size} bytes", limits.max_file_bytes)
            if entry.file_size > 1 << 20 and entry.file_size > limits.max_ratio * max(entry.compress_size, 1):
                ratio = entry.file_size / max(entry.compress_size, 1)
                raise self._beyond(f"the file {name[:200]!r} unpacks to {ratio:.0f} times its size", limits.max_ratio)
            total += entry.file_size
            if name in entries:
                raise ArchiveError(self.where, f"the name {name[:200]!r} stands twice, expected once")
            entries[name] = entry
        if total > limits.max_total_bytes:
            raise self._beyond(f"the unpacked size is {total} bytes", limits.max_total_bytes)
        return entries

    def _beyond(self, what: str, limit: float) -> ArchiveError:
        return ArchiveError(
            self.where, f"{what}, expected at most {limit:g}", "Unpack it by hand if it is to be trusted."
        )


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or left about by a system."""
    return name.startswith(".") or name.lower() in _JUNK_NAMES


def _entry_name(entry: zipfile.ZipInfo) -> str:
    """The name with forward slashes; UTF-8 where the tool forgot to say so."""
    name = entry.filename
    if not entry.flag_bits & _UTF8_FLAG:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = entry.filename
    return name.replace("\\", "/").removeprefix("./")


def _unreadable(where: str, name: str, error: Exception) -> ArchiveError:
    reason = getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__
    return ArchiveError(where, f"the file {name[:200]!r} is unreadable ({reason}), expected a whole file")
