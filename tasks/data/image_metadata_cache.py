"""Cache the metadata of images by the version of their file or object, so that each is opened once.

Asking a hundred thousand objects for their versions takes a hundred requests; fetching them takes hours.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from threading import Lock
from typing import Any

from tasks.data.image_decoding import ImageProblem
from tasks.data.images import ImageMetadata, inspect_image
from tasks.data.paths import Workspace, resolve_uri
from tasks.storage import files
from tasks.storage.image_cache import ImageCache
from tasks.storage.s3 import MissingObjectError, ObjectMetadata, list_objects, split_uri

_REJECTION_LENGTH = 2


class ImageMetadataCache:
    """Metadata of images by (uri, version), in a file that may be deleted."""

    def __init__(self, path: Path, fetch: Callable[[str], Path]) -> None:
        """Read the entries of earlier calls.

        Args:
            path: one JSON list a line, appended to; may be deleted at any time.
            fetch: gives the local file of an uri.
        """
        self._path, self._fetch, self._lock = path, fetch, Lock()
        self._metadata: dict[tuple[str, str], ImageMetadata] = {}
        self._rejected: dict[tuple[str, str, int], str] = {}
        """Why an image is none, by its limit in pixels too."""
        if path.is_file():
            with path.open("rb") as lines:  # a line feed ends a line, and nothing else
                for line in lines:
                    with suppress(ValueError, TypeError):  # the last line of a killed process
                        self._load_entry(*json.loads(line))

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
        reason = self._rejected.get((uri, version, max_pixels))
        if reason:
            raise ImageProblem(reason)
        metadata = self._metadata.get((uri, version))
        if metadata is None or metadata.width_px * metadata.height_px > max_pixels:
            metadata = self._inspect_file(uri, version, max_pixels)
            self._append_entry(uri, version, *astuple(metadata))
        return metadata

    def is_known(self, uri: str, version: str, *, max_pixels: int) -> bool:
        """Return whether ``inspect`` would answer without opening the file."""
        metadata = self._metadata.get((uri, version))
        if metadata is not None and metadata.width_px * metadata.height_px <= max_pixels:
            return True
        return (uri, version, max_pixels) in self._rejected

    def add(self, lines: str) -> None:
        """Take over the entries of another cache: the content of its file."""
        with self._lock:
            for line in files.json_lines(lines.encode()):
                self._load_entry(*json.loads(line))
            self._append(lines)

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

    def _load_entry(self, uri: str, version: str, *found: Any) -> None:
        if len(found) == len(fields(ImageMetadata)):
            self._metadata[uri, version] = ImageMetadata(*found)
        elif len(found) == _REJECTION_LENGTH:
            self._rejected[uri, version, found[0]] = found[1]

    def _append_entry(self, uri: str, version: str, *found: Any) -> None:
        line = json.dumps([uri, version, *found]) + "\n"
        with self._lock:
            self._load_entry(uri, version, *found)
            self._append(line)

    def _append(self, lines: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(lines)


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


def list_existing_objects(uris: Iterable[str]) -> Mapping[str, ObjectMetadata]:
    """Return which of these objects exist, by uri, with one request per thousand.

    Raises:
        ObjectStoreError: away, refused, or no such bucket.
    """
    wanted = set(uris)
    keys_of: dict[str, list[str]] = {}
    for uri in wanted:
        bucket, key = split_uri(uri)
        keys_of.setdefault(bucket, []).append(key)
    # Letter by letter and then back to the last slash: keys are no paths, a//b is not a/b.
    folders = {bucket: os.path.commonprefix(keys).rpartition("/")[0] for bucket, keys in keys_of.items()}  # noqa: RUF071
    prefixes = [f"s3://{bucket}/{folder}" for bucket, folder in folders.items()]
    return {facts.uri: facts for prefix in prefixes for facts in list_objects(prefix) if facts.uri in wanted}
