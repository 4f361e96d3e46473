"""Cache the metadata of images by the version of their file or object, so that each is opened once.

Asking a hundred thousand objects for their versions takes a hundred requests; fetching them takes hours.
"""

import json
import os
import re
import weakref
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, fields
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.image_decoding import ImageProblem
from tasks.data.images import ImageMetadata, inspect_image
from tasks.data.paths import Workspace, resolve_uri
from tasks.storage.image_cache import ImageCache
from tasks.storage.s3 import SCHEME, MissingObjectError, list_objects, split_uri

_REJECTION_LENGTH, _METADATA_LENGTH = 2, len(fields(ImageMetadata))
_KEY = re.compile(rb'\["(?:[^"\\]|\\.)*", "(?:[^"\\]|\\.)*"')
_MAX_RECENT, _READ_BYTES, _BLOCK_OBJECTS = 1 << 16, 512, 1 << 16
_VERSIONS = pa.schema([("uri", pa.string()), ("etag", pa.string())])


class _StoredEntries:
    """Where in a file of entries those of an (uri, version) begin: 16 bytes each, for a pool has many."""

    def __init__(self, path: Path) -> None:
        """Find the entries of earlier calls; ``path`` may be missing."""
        self._path = path
        self._descriptor: int | None = None
        self._key_hashes, self._offsets = array("q"), array("q")
        """Sorted by hash; entries with one hash in the order of the file."""
        self._recent: dict[int, list[int]] = {}
        """The same of what was appended since, until it is merged."""
        if self._open():
            with path.open("rb") as lines:
                for key_hash, offset in _positions(lines, 0):
                    self._key_hashes.append(key_hash)
                    self._offsets.append(offset)
        self._merge()

    def find(self, uri: str, version: str) -> list[list[Any]]:
        """Return what the entries of an image hold behind uri and version, oldest first."""
        key = _key(uri, version)
        key_hash = hash(key)
        first = bisect_left(self._key_hashes, key_hash)
        last = bisect_right(self._key_hashes, key_hash, lo=first)
        found = []
        for offset in (*self._offsets[first:last], *self._recent.get(key_hash, ())):
            line = self._read_line(offset)
            if line.startswith(key):
                with suppress(ValueError):  # the last line of a killed process
                    found.append(json.loads(line)[2:])
        return found

    def append(self, content: bytes) -> None:
        """Append lines to the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            stream.write(content)
            stream.flush()
            offset = stream.tell() - len(content)
        self._open()
        for key_hash, position in _positions(BytesIO(content), offset):
            self._recent.setdefault(key_hash, []).append(position)
        if len(self._recent) >= _MAX_RECENT:
            self._merge()

    def _open(self) -> bool:
        if self._descriptor is None and self._path.is_file():
            self._descriptor = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor is not None

    def _merge(self) -> None:
        recent = [(key_hash, offset) for key_hash, offsets in self._recent.items() for offset in offsets]
        pairs_E2 = np.array([*recent], dtype=np.int64).reshape(-1, 2)
        hashes = np.concatenate([np.frombuffer(self._key_hashes, dtype=np.int64), pairs_E2[:, 0]])
        offsets = np.concatenate([np.frombuffer(self._offsets, dtype=np.int64), pairs_E2[:, 1]])
        order = np.argsort(hashes, kind="stable")
        self._key_hashes, self._offsets = array("q", hashes[order].tobytes()), array("q", offsets[order].tobytes())
        self._recent = {}

    def _read_line(self, offset: int) -> bytes:
        assert self._descriptor is not None
        line = b""
        while b"\n" not in line:
            chunk = os.pread(self._descriptor, _READ_BYTES, offset + len(line))
            if not chunk:
                break
            line += chunk
        return line.partition(b"\n")[0]


def _positions(lines: Iterable[bytes], offset: int) -> Iterator[tuple[int, int]]:
    """Yield hash and place of each entry; a line feed ends a line, and nothing else."""
    for line in lines:
        key = _KEY.match(line)
        if key:
            yield hash(key.group()), offset
        offset += len(line)


def _key(uri: str, version: str) -> bytes:
    """Return how an entry's line begins."""
    return json.dumps([uri, version])[:-1].encode()


class ImageMetadataCache:
    """Metadata of images by (uri, version), in a file that may be deleted."""

    def __init__(self, path: Path, fetch: Callable[[str], Path]) -> None:
        """Read the entries of earlier calls.

        Args:
            path: one JSON list a line, appended to; may be deleted at any time.
            fetch: gives the local file of an uri.
        """
        self._fetch, self._lock = fetch, Lock()
        self._entries = _StoredEntries(path)

    def inspect(self, uri: str, version: str, *, max_pixels: int) -> ImageMetadata:
        """Hash and fully decode one image, unless the cache has this version.

        Args:
            uri: of the image.
            version: changes whenever its bytes do.
            max_pixels: images with more are refused.

        Raises:
            ImageProblem: gone by now, no known format, too large, broken, or not 8 bits deep.
            ObjectStoreError: away or refused.
        """
        metadata, reason = self._find(uri, version, max_pixels)
        if reason:
            raise ImageProblem(reason)
        if metadata is None or metadata.width_px * metadata.height_px > max_pixels:
            metadata = self._inspect_file(uri, version, max_pixels)
            self._append_entry(uri, version, *astuple(metadata))
        return metadata

    def is_known(self, uri: str, version: str, *, max_pixels: int) -> bool:
        """Return whether ``inspect`` would answer without opening the file."""
        metadata, reason = self._find(uri, version, max_pixels)
        return reason is not None or (metadata is not None and metadata.width_px * metadata.height_px <= max_pixels)

    def add(self, lines: str) -> None:
        """Take over the entries of another cache: the content of its file."""
        with self._lock:
            self._entries.append(lines.encode())

    def _find(self, uri: str, version: str, max_pixels: int) -> tuple[ImageMetadata | None, str | None]:
        """Return the metadata of an image, and why it is none with this limit, as far as they are known."""
        metadata, reason = None, None
        with self._lock:
            entries = self._entries.find(uri, version)
        for found in entries:
            if len(found) == _METADATA_LENGTH:
                metadata = ImageMetadata(*found)
            elif len(found) == _REJECTION_LENGTH and found[0] == max_pixels:
                reason = found[1]
        return metadata, reason

    def _inspect_file(self, uri: str, version: str, max_pixels: int) -> ImageMetadata:
        try:
            path = self._fetch(uri)
        except MissingObjectError as error:
            raise ImageProblem(error.problem) from None
        try:
            return inspect_image(path, max_pixels=max_pixels)
        except ImageProblem as problem:
            cause = problem.__context__
            is_transient = isinstance(cause, OSError) and cause.errno is not None  # the disk's fault, not the image's
            if path.is_file() and not is_transient:
                self._append_entry(uri, version, max_pixels, str(problem))
            raise

    def _append_entry(self, uri: str, version: str, *found: Any) -> None:
        line = json.dumps([uri, version, *found]) + "\n"
        with self._lock:
            self._entries.append(line.encode())


def object_metadata_cache(workspace: Workspace, cache: ImageCache) -> ImageMetadataCache:
    """Return the cache for the objects of a campaign, whose version is their ETag."""
    return ImageMetadataCache(workspace.scratch("seen") / "objects.jsonl", lambda uri: cache.add(uri)[0])


def file_metadata_cache(workspace: Workspace) -> ImageMetadataCache:
    """Return the cache for files of the directory that a campaign takes its images from; uris are their paths."""
    return ImageMetadataCache(workspace.scratch("seen") / "files.jsonl", Path)


def workspace_metadata_cache(workspace: Workspace) -> ImageMetadataCache:
    """Return the cache for the images in a campaign's own folder; uris are relative to it, so that it may move."""
    return ImageMetadataCache(workspace.scratch("seen") / "images.jsonl", lambda uri: resolve_uri(workspace.root, uri))


def inspect_file(cache: ImageMetadataCache, uri: str, path: Path, *, max_pixels: int) -> ImageMetadata:
    """Inspect a local file, unless the cache knows it with this size and time of change.

    Args:
        cache: of files.
        uri: the file's name in the cache.
        path: of the file.
        max_pixels: images with more are refused.

    Raises:
        ImageProblem: missing, no known format, too large or broken.
    """
    return cache.inspect(uri, file_version(path), max_pixels=max_pixels)


def file_version(path: Path) -> str:
    """Return what changes whenever a file does: its time of change and its size.

    Raises:
        ImageProblem: missing, or out of reach.
    """
    try:
        status = path.stat()
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})"
        raise ImageProblem(f"the image file is {reason}, expected a file") from None
    return f"{status.st_mtime_ns}-{status.st_size}"


def object_versions(uris: pa.ChunkedArray) -> pa.Array:
    """Return the ETag of each object, null where there is none, with one request per thousand; no object a uri.

    Raises:
        ObjectStoreError: away, refused, or no such bucket.
    """
    remote = uris.filter(pc.starts_with(uris, SCHEME))
    ends: dict[str, tuple[str, str]] = {}
    for start in range(0, len(remote), _BLOCK_OBJECTS):
        for uri in remote.slice(start, _BLOCK_OBJECTS).to_pylist():
            bucket, key = split_uri(uri)
            first, last = ends.get(bucket, (key, key))
            ends[bucket] = min(first, key), max(last, key)
    # Letter by letter and then back to the last slash: keys are no paths, a//b is not a/b. What the first and the last
    # of sorted keys have in common, all have.
    folders = {bucket: os.path.commonprefix(keys).rpartition("/")[0] for bucket, keys in ends.items()}  # noqa: RUF071
    found = [_listed_among(f"s3://{bucket}/{folder}", remote) for bucket, folder in folders.items()]
    listed = pa.concat_tables([_VERSIONS.empty_table(), *found])
    return listed["etag"].combine_chunks().take(pc.index_in(uris, value_set=listed["uri"]).combine_chunks())


def _listed_among(prefix: str, wanted: pa.ChunkedArray) -> pa.Table:
    """List the objects below a prefix that are wanted."""
    parts = [_VERSIONS.empty_table()]
    objects = list_objects(prefix)
    while block := list(islice(objects, _BLOCK_OBJECTS)):
        columns = {"uri": [facts.uri for facts in block], "etag": [facts.etag for facts in block]}
        table = pa.table(columns, schema=_VERSIONS)
        parts.append(table.filter(pc.is_in(table["uri"], value_set=wanted)))
    return pa.concat_tables(parts)
