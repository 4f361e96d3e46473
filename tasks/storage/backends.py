"""Read and write files in a directory or under an s3:// prefix, through one interface."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Protocol

from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.s3 import (
    MissingObjectError,
    ObjectStoreError,
    delete_object,
    is_object_uri,
    list_objects,
    read_object,
    upload_file,
    write_object,
)

COMPLETE_MARKER = "_COMPLETE"
"""Written last into a published folder; without it the folder is incomplete and is ignored."""
_PROBE_FILE = ".gleaner-probe"
_NUM_UPLOAD_WORKERS = 8
_PERMANENT_ERRNOS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What does not pass by itself; all else on a network share may."""


class StorageError(UserError):
    """A storage is missing, refuses access or does not answer."""

    exit_code = 1

    def __init__(self, where: object, problem: str, fix: str = "", *, transient: bool = False) -> None:
        """Build the message; ``transient``: the same call may succeed later."""
        super().__init__(where, problem, fix)
        self.transient = transient


@dataclass(frozen=True)
class FileEntry:
    """One file of a folder."""

    name: str
    """Relative to the folder, with forward slashes; printable, so not always the name to open."""
    size_bytes: int
    modified_at: datetime
    etag: str
    """Changes whenever the content does."""
    locator: str
    """How the place finds it."""


class Storage(Protocol):
    """Folder or prefix that holds files. Names are relative, with forward slashes. Every method raises StorageError."""

    def check(self) -> None:
        """Raise StorageError where files cannot be written."""

    def uri(self, name: str) -> str:
        """Return a path or uri that a user can open."""

    def list_files(self, folder: str) -> list[FileEntry]:
        """List all files below a folder, by name; none where the folder is missing."""

    def read(self, entry: FileEntry) -> bytes:
        """Read one file."""

    def read_optional(self, name: str) -> bytes | None:
        """Read one file that Gleaner wrote; None where it is missing."""

    def write(self, name: str, content: bytes) -> None:
        """Write one file at once."""

    def write_batch(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Write these files into a folder, then ``_COMPLETE``, without which it is ignored. May be repeated."""


def open_storage(url: str, workspace_root: Path) -> Storage:
    """Return the storage of ``provider.url``; a relative directory is relative to the campaign.

    Raises:
        StorageError: it lies inside the campaign, where git would take it for the campaign's own.
    """
    if is_object_uri(url):
        return S3Storage(url.rstrip("/"))
    root = (workspace_root / Path(url).expanduser()).resolve()
    if root.is_relative_to(workspace_root.resolve()):
        problem = f"provider.url is {url!r}, expected a directory outside the campaign"
        raise StorageError("params.yaml: provider", problem, "Name another one, as ../annotation.")
    return LocalStorage(root)


class LocalStorage:
    """A directory, maybe of a network share."""

    def __init__(self, root: Path) -> None:
        """``root`` must exist: a share that is not mounted looks just like a new directory."""
        self._root = root

    def check(self) -> None:
        """Raise StorageError where the directory is missing or cannot be written."""
        if not self._root.is_dir():
            problem = "the directory is missing, expected it made, or the share mounted"
            raise StorageError(self._root, problem, f"Run: mkdir -p {self._root}")
        with _translate_os_errors(self._root):
            files.write_bytes(self._root / _PROBE_FILE, b"")
            (self._root / _PROBE_FILE).unlink()

    def uri(self, name: str) -> str:
        """Return the absolute path."""
        return _printable(str(self._root / name))

    def list_files(self, folder: str) -> list[FileEntry]:
        """List plain files; links, pipes and unreadable folders are entries of 0 bytes, which ``read`` refuses."""
        top = self._plain_path(folder)
        found: list[FileEntry | None] = []

        def on_error(error: OSError) -> None:
            if Path(error.filename) != top:
                found.append(self._file_entry(Path(error.filename), top))
            elif not isinstance(error, FileNotFoundError):
                raise error

        with _translate_os_errors(top):
            for parent, subfolders, names in os.walk(top, onerror=on_error):  # follows no links
                subfolders.sort()
                links = [name for name in subfolders if Path(parent, name).is_symlink()]
                found += [self._file_entry(Path(parent, name), top) for name in sorted((*names, *links))]
        return [entry for entry in found if entry is not None]

    def _file_entry(self, path: Path, top: Path) -> FileEntry | None:
        try:
            stat_result = path.lstat()
        except FileNotFoundError:  # moved away this moment
            return None
        size = stat_result.st_size if stat.S_ISREG(stat_result.st_mode) else 0
        try:
            modified_at = datetime.fromtimestamp(stat_result.st_mtime, UTC)
        except (ValueError, OverflowError, OSError):  # some file systems keep times outside the calendar
            modified_at = datetime.fromtimestamp(0, UTC)
        etag = f"{stat_result.st_mtime_ns}-{stat_result.st_size}-{stat_result.st_ino}"
        return FileEntry(_printable(path.relative_to(top).as_posix()), size, modified_at, etag, str(path))

    def read(self, entry: FileEntry) -> bytes:
        """Read a plain file; nothing else is opened, since a pipe would block."""
        path = Path(entry.locator)
        with _translate_os_errors(path):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise StorageError(_printable(str(path)), "the file is a link or no plain file, expected a plain one")
            return path.read_bytes()

    def read_optional(self, name: str) -> bytes | None:
        """Read one file that Gleaner wrote."""
        path = self._plain_path(name)
        with _translate_os_errors(path):
            return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        """Write one file at once."""
        path = self._plain_path(name)
        with _translate_os_errors(path):
            files.write_bytes(path, content)

    def write_batch(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Build under a hidden name and rename, which fails where files of others have that name."""
        target = self._plain_path(folder)
        with _translate_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)  # which does not follow a link
            # A name that nobody knows before, so that nobody can have put a link there.
            staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            staging.mkdir()
            for name, content in contents.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Copied, never linked: a tool that rewrites its picture must not reach the campaign's.
                shutil.copyfile(content, path) if isinstance(content, Path) else path.write_bytes(content)
                _fsync(path)
            files.write_bytes(staging / COMPLETE_MARKER, complete)
            staging.rename(target)

    def _plain_path(self, name: str) -> Path:
        """Return the path of a file or folder; nothing on the way below the top may be a link.

        Whoever may write here could lead reads and writes of a run anywhere else with one.

        Raises:
            StorageError: names the link.
        """
        path = self._root
        for part in PurePosixPath(name).parts:
            path = path / part
            if path.is_symlink():
                problem = "the path is a link, expected a plain folder or file"
                raise StorageError(
                    _printable(str(path)), problem, "Remove the link, or point provider.url at its target."
                )
        return path


class S3Storage:
    """A prefix of an S3 bucket."""

    def __init__(self, prefix_uri: str) -> None:
        """``prefix_uri`` without a slash at its end."""
        self._prefix = prefix_uri

    def check(self) -> None:
        """Raise StorageError where the bucket cannot be listed or written."""
        with _translate_s3_errors():
            next(iter(list_objects(f"{self._prefix}/outbox")), None)
            write_object(f"{self._prefix}/{_PROBE_FILE}", b"")
            delete_object(f"{self._prefix}/{_PROBE_FILE}")

    def uri(self, name: str) -> str:
        """Return the uri."""
        return f"{self._prefix}/{name}"

    def list_files(self, folder: str) -> list[FileEntry]:
        """List all objects below the folder."""
        top = f"{self._prefix}/{folder}/"
        with _translate_s3_errors():
            return [
                FileEntry(facts.uri.removeprefix(top), facts.size_bytes, facts.modified_at, facts.etag, facts.uri)
                for facts in list_objects(top)
            ]

    def read(self, entry: FileEntry) -> bytes:
        """Read one object."""
        with _translate_s3_errors():
            return read_object(entry.locator)

    def read_optional(self, name: str) -> bytes | None:
        """Read one object that Gleaner wrote."""
        with _translate_s3_errors():
            try:
                return read_object(self.uri(name))
            except MissingObjectError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write one object."""
        with _translate_s3_errors():
            write_object(self.uri(name), content)

    def write_batch(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        """Write the objects, then ``_COMPLETE``; those of an earlier attempt are overwritten or the same."""

        def send(name: str, content: bytes | Path) -> None:
            uri = self.uri(f"{folder}/{name}")
            if isinstance(content, Path):
                upload_file(content, uri, files.sha256_file(content))
            else:
                write_object(uri, content)

        with _translate_s3_errors():
            with ThreadPoolExecutor(_NUM_UPLOAD_WORKERS) as threads:
                list(threads.map(send, contents, contents.values()))
            write_object(self.uri(f"{folder}/{COMPLETE_MARKER}"), complete)


@contextmanager
def _translate_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = error.strerror or type(error).__name__
        fix = "Check the directory, its rights and its disk."
        problem, transient = (
            f"the file system's answer is {message!r}, expected none",
            error.errno not in _PERMANENT_ERRNOS,
        )
        raise StorageError(_printable(str(path)), problem, fix, transient=transient) from None


@contextmanager
def _translate_s3_errors() -> Iterator[None]:
    try:
        yield
    except ObjectStoreError as error:
        raise StorageError(error.where, error.problem, error.fix, transient=error.transient) from None


def _printable(name: str) -> str:
    """Names need not be UTF-8, what we write and log is."""
    return name.encode("utf-8", "backslashreplace").decode()


def _fsync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())
