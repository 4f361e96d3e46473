"""Where the files lie: a directory or an s3:// prefix, behind the few things that are done with either."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from flows.labels.providers.base import ProviderError
from tasks import files
from tasks.object_store import (
    MissingObjectError,
    ObjectStoreError,
    delete_object,
    is_object_uri,
    list_objects,
    read_object,
    upload_file,
    write_object,
)

COMPLETE = "_COMPLETE"
"""Written last into a published folder: without it the rest is a remnant, and nobody may trust it."""
_PROBE = ".gleaner-probe"
_UPLOADS_AT_ONCE = 8
_LASTING = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What does not pass by itself; all else on a network share may."""


@dataclass(frozen=True)
class Entry:
    """One file of a folder."""

    name: str
    """Relative to the folder, with forward slashes; printable, so not always the name to open."""
    bytes: int
    modified_at: datetime
    version: str
    """Changes whenever the content does."""
    address: str
    """How the place finds it."""


class Place(Protocol):
    """Names are relative to the place, with forward slashes. Every method raises ProviderError."""

    def check(self) -> None:
        """Refuse a place that cannot be written."""

    def where(self, name: str) -> str:
        """The name as a person can follow it: a path or an uri."""

    def entries(self, folder: str) -> list[Entry]:
        """All files below a folder, by name; none where there is no such folder."""

    def read(self, entry: Entry) -> bytes:
        """The content of one file."""

    def find(self, name: str) -> bytes | None:
        """The content of one file of ours; None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write one file at once."""

    def publish(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Make a folder of these files, and of ``_COMPLETE``; whole, or not to be trusted. May be repeated."""


def place_at(location: str, workspace_root: Path) -> Place:
    """The place ``provider.location`` means; a relative directory is one beside the campaign's files.

    Raises:
        ProviderError: it lies inside the campaign, where git would take it for the campaign's own.
    """
    if is_object_uri(location):
        return Bucket(location.rstrip("/"))
    root = (workspace_root / Path(location).expanduser()).resolve()
    if root.is_relative_to(workspace_root.resolve()):
        problem = f"location is {location!r}, expected a directory outside the campaign"
        raise ProviderError("params.yaml: provider", problem, "Name another one, as ../annotation.")
    return Directory(root)


class Directory:
    """A directory, maybe of a network share."""

    def __init__(self, root: Path) -> None:
        """``root`` must exist: a share that is not mounted looks just like a new directory."""
        self._root = root

    def check(self) -> None:
        """Refuse a directory that is missing or cannot be written."""
        if not self._root.is_dir():
            problem = "the directory is missing, expected it made, or the share mounted"
            raise ProviderError(self._root, problem, f"Run: mkdir -p {self._root}")
        with _local(self._root):
            files.write_bytes(self._root / _PROBE, b"")
            (self._root / _PROBE).unlink()

    def where(self, name: str) -> str:
        """The absolute path."""
        return _printable(str(self._root / name))

    def entries(self, folder: str) -> list[Entry]:
        """Plain files; links, pipes and closed folders are entries too, of no bytes, which ``read`` refuses."""
        top = self._root / folder
        found: list[Entry | None] = []

        def closed(error: OSError) -> None:
            if Path(error.filename) != top:
                found.append(self._entry(Path(error.filename), top))
            elif not isinstance(error, FileNotFoundError):
                raise error

        with _local(top):
            for parent, subfolders, names in os.walk(top, onerror=closed):  # follows no links
                subfolders.sort()
                links = [name for name in subfolders if Path(parent, name).is_symlink()]
                found += [self._entry(Path(parent, name), top) for name in sorted((*names, *links))]
        return [entry for entry in found if entry is not None]

    def _entry(self, path: Path, top: Path) -> Entry | None:
        try:
            facts = path.lstat()
        except FileNotFoundError:  # moved away this moment
            return None
        size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
        modified_at = datetime.fromtimestamp(facts.st_mtime, UTC)
        version = f"{facts.st_mtime_ns}-{facts.st_size}-{facts.st_ino}"
        return Entry(_printable(path.relative_to(top).as_posix()), size, modified_at, version, str(path))

    def read(self, entry: Entry) -> bytes:
        """The content of a plain file; nothing else is opened, a pipe would block for ever."""
        path = Path(entry.address)
        with _local(path):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ProviderError(_printable(str(path)), "the file is a link or no plain file, expected a plain one")
            return path.read_bytes()

    def find(self, name: str) -> bytes | None:
        """The content of one file of ours."""
        path = self._root / name
        with _local(path):
            return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        """Write one file at once."""
        with _local(self._root / name):
            files.write_bytes(self._root / name, content)

    def publish(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Build under a hidden name and rename, which fails where somebody has put files under that name."""
        target = self._root / folder
        building = target.with_name(f".{target.name}.tmp")
        with _local(target):
            shutil.rmtree(building, ignore_errors=True)
            for name, content in contents.items():
                path = building / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Copied, never linked: a tool that rewrites its picture must not reach the campaign's.
                shutil.copyfile(content, path) if isinstance(content, Path) else path.write_bytes(content)
                _fsync(path)
            files.write_bytes(building / COMPLETE, complete)
            building.rename(target)


class Bucket:
    """A prefix of an S3 bucket."""

    def __init__(self, prefix_uri: str) -> None:
        """``prefix_uri`` without a slash at its end."""
        self._prefix = prefix_uri

    def check(self) -> None:
        """Refuse a bucket that cannot be listed, or not be written."""
        with _remote():
            next(iter(list_objects(f"{self._prefix}/outbox")), None)
            write_object(f"{self._prefix}/{_PROBE}", b"")
            delete_object(f"{self._prefix}/{_PROBE}")

    def where(self, name: str) -> str:
        """The uri."""
        return f"{self._prefix}/{name}"

    def entries(self, folder: str) -> list[Entry]:
        """All objects below the folder."""
        top = f"{self._prefix}/{folder}/"
        with _remote():
            return [
                Entry(facts.uri.removeprefix(top), facts.bytes, facts.modified_at, facts.etag, facts.uri)
                for facts in list_objects(top)
            ]

    def read(self, entry: Entry) -> bytes:
        """The content of one object."""
        with _remote():
            return read_object(entry.address)

    def find(self, name: str) -> bytes | None:
        """The content of one object of ours."""
        with _remote():
            try:
                return read_object(self.where(name))
            except MissingObjectError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write one object."""
        with _remote():
            write_object(self.where(name), content)

    def publish(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Objects first, ``_COMPLETE`` last; what an earlier attempt left there is overwritten or the same."""

        def send(name: str, content: bytes | Path) -> None:
            uri = self.where(f"{folder}/{name}")
            if isinstance(content, Path):
                upload_file(content, uri, files.sha256_file(content))
            else:
                write_object(uri, content)

        with _remote():
            with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as threads:
                list(threads.map(send, contents, contents.values()))
            write_object(self.where(f"{folder}/{COMPLETE}"), complete)


@contextmanager
def _local(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or type(error).__name__
        fix = "Check the directory, its rights and its disk."
        problem, transient = f"the file system's answer is {said!r}, expected none", error.errno not in _LASTING
        raise ProviderError(_printable(str(path)), problem, fix, transient=transient) from None


@contextmanager
def _remote() -> Iterator[None]:
    try:
        yield
    except ObjectStoreError as error:
        raise ProviderError(error.where, error.problem, error.fix, transient=error.transient) from None


def _printable(name: str) -> str:
    """Names need not be UTF-8, what we write and log is."""
    return name.encode("utf-8", "backslashreplace").decode()


def _fsync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())
