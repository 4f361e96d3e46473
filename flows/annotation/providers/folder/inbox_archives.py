"""Read zip archives of an inbox in place: each file in one becomes an entry, as if it had been unpacked there.

Nothing is written, so a second collection finds the same. Names in archives are text for messages, never paths.
"""

import io
import zipfile
from pathlib import PurePosixPath

from tasks.data.archives import ArchiveLimits, ZipSource
from tasks.data.errors import ArchiveError, TruncatedFileError, UnsupportedFormatError
from tasks.data.names import printable
from tasks.storage.backends import FileEntry

_LIMITS = ArchiveLimits(max_files=200_000, max_file_bytes=1 << 29, max_total_bytes=1 << 33)
_MAGIC = b"PK"


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
