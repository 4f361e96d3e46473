"""Name what can be wrong with an annotation file or an archive as a whole."""

from tasks.runtime.errors import UserError

__all__ = ["ArchiveError", "TruncatedFileError", "UnsupportedFormatError", "UserError"]


class TruncatedFileError(UserError):
    """The file ends too early: it is still being written, or a copy was interrupted."""


class UnsupportedFormatError(UserError):
    """Nothing in the file can be read: another format, or one that is broken as a whole."""


class ArchiveError(UserError):
    """A folder or zip archive cannot be opened, or exceeds the limits on size, count or names."""
