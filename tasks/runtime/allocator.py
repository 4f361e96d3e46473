"""How this process gets memory from the system."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_BYTES = 2**31 - 1
_MMAP_FROM_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Ask the C library to keep the memory of freed tensors for the next ones.

    By default glibc gives large blocks back at once. Every step of a training then gets its activations as new pages,
    which the kernel has to clear first. The peak of the memory stays as it is; below it, less is given back. Without
    effect on tensors of a GPU.

    Returns:
        Whether the C library can be asked; glibc can.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES), mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)])
