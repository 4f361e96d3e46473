"""Distinguish a lack of memory or disk space from a bug.

Libraries say it in many ways: as MemoryError, as OSError with its number, or as RuntimeError in words only.
"""

import errno
import re
from collections.abc import Iterator

from tasks.runtime.errors import DiskFullError, OutOfMemoryError, UserError

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_MEMORY_TEXT = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_DISK_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full", re.IGNORECASE)
_MEMORY_HINTS = {
    "train": "Lower train.labeled_batch_size, train.unlabeled_batch_size or model.short_side_px.",
    "evaluate": "Lower evaluate.batch_size.",
    "infer": "Lower infer.batch_size.",
}


def as_resource_error(where: str, error: BaseException) -> UserError | None:
    """Return the lack of memory or disk space behind an error; None where it has another cause.

    Args:
        where: the stage, or what else was at work.
        error: what it raised.
    """
    if is_disk_full(error):
        return disk_full_error(where)
    if any(isinstance(cause, MemoryError) or _matches(_OUT_OF_MEMORY_TEXT, cause) for cause in exception_chain(error)):
        message = (str(error).splitlines() or [type(error).__name__])[0]
        hint = _MEMORY_HINTS.get(where, "Free some, or use a machine with more.")
        return OutOfMemoryError(where, f"memory is used up ({message}), expected enough of it", hint)
    return None


def as_user_error(where: str, error: Exception) -> UserError | None:
    """Return the error to show to the user: a wrong input, or a lack of memory or space; None for a bug."""
    return error if isinstance(error, UserError) else as_resource_error(where, error)


def disk_full_error(where: str) -> DiskFullError:
    """Build the error for a full disk."""
    fix = "Free some and run the same command again: it goes on from here."
    return DiskFullError(where, "the space left on the disk is 0, expected more", fix)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is a write to a full disk."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNOS) or mentions_disk_full(str(cause))
        for cause in exception_chain(error)
    )


def mentions_disk_full(text: str) -> bool:
    """Return whether a program's output reports a full disk."""
    return bool(_DISK_FULL_TEXT.search(text))


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, newest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def _matches(pattern: re.Pattern[str], error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(pattern.search(str(error)))
