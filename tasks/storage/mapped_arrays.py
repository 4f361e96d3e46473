"""Keep arrays on disk of which only the pages that are read come into memory."""

import mmap
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT_BYTES = 64


def mapped_arrays(arrays: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Write one-dimensional arrays to a temporary file without a name, and return them mapped from there.

    They may be written to, which changes no file. The file is gone with the last of them, or with the process.
    """
    shapes: list[tuple[np.dtype[Any], int, int]] = []
    with tempfile.TemporaryFile(prefix="gleaner-") as stream:
        for array in arrays:
            shapes.append((array.dtype, len(array), stream.tell()))
            stream.write(np.ascontiguousarray(array).data.cast("B") if len(array) else b"")
            stream.write(bytes(-stream.tell() % _ALIGNMENT_BYTES))
        stream.flush()
        if not stream.tell():
            return [np.empty(0, dtype) for dtype, _, _ in shapes]
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return [np.frombuffer(mapping, dtype, count, offset) for dtype, count, offset in shapes]
