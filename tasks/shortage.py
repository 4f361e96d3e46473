"""Tells a machine that ran out of memory or of disk space from a mistake in the code.

Libraries say it in many ways: as MemoryError, as OSError with its number, or as RuntimeError in words only.
"""

import errno
import re
from collections.abc import Iterator

from tasks.errors import DiskFullError, OutOfMemoryError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full", re.IGNORECASE)
_LOWER = {
    "train": "Lower train.labeled_images_per_step, train.unlabeled_images_per_step or model.short_side_px.",
    "evaluate": "Lower evaluate.images_per_batch.",
    "infer": "Lower infer.images_per_batch.",
}


def shortage(where: str, error: BaseException) -> UserError | None:
    """The shortage behind an error; None where it is something else.

    Args:
        where: the stage, or what else was at work.
        error: what it raised.
    """
    if disk_is_full(error):
        return disk_full(where)
    if any(isinstance(cause, MemoryError) or _says(_NO_MEMORY, cause) for cause in causes(error)):
        words = (str(error).splitlines() or [type(error).__name__])[0]
        lower = _LOWER.get(where, "Free some, or use a machine with more.")
        return OutOfMemoryError(where, f"memory is used up ({words}), expected enough of it", lower)
    return None


def in_one_line(where: str, error: Exception) -> UserError | None:
    """The error as a user is told it: their own mistake, or a shortage; None for a bug."""
    return error if isinstance(error, UserError) else shortage(where, error)


def disk_full(where: str) -> DiskFullError:
    """The message about a full disk."""
    fix = "Free some and run the same command again: it goes on from here."
    return DiskFullError(where, "the space left on the disk is 0, expected more", fix)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, is a write that found no space."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _FULL) or says_disk_full(str(cause)) for cause in causes(error)
    )


def says_disk_full(words: str) -> bool:
    """Whether a program's own words mean that."""
    return bool(_NO_SPACE.search(words))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what led to it, newest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def _says(pattern: re.Pattern[str], error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(pattern.search(str(error)))
