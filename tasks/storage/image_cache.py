"""Cache images of an object store as local files: fetched once, checked against their id, within a size limit.

Several processes may share one folder. A file in it is whole and checked, or it is not there: it is written under
another name and renamed. What was used longest ago goes first when space is short; whoever finds a file gone
fetches it again.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

from filelock import FileLock, Timeout

from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.params import load_params
from tasks.storage.s3 import ObjectStoreError, ObjectStoreUnavailable, fetch_object

CACHE_FOLDER_ENV = "GLEANER_IMAGE_CACHE"
"""Environment variable: a folder for the images of all campaigns of a machine; else each campaign has its own."""
_MAX_ATTEMPTS = 4
_INITIAL_BACKOFF_S = 1.0
"""Doubled from attempt to attempt; on top of what botocore tries by itself within one request."""
_EVICT_TO_FRAC = 0.9
"""Making room goes down to this share of the limit, so that it is not done for every image."""
_CHECK_EVERY_FRAC = 0.02
"""Sizes are added up again when this process alone has fetched such a share of the limit."""
_STALE_PART_S = 3600.0
_PART_SUFFIX = ".part"
_Result = TypeVar("_Result")


class ChangedObjectError(ObjectStoreError):
    """The bytes at an uri are no longer those of the image."""


class ImageCache:
    """A bounded folder of images, named by their ids."""

    def __init__(self, folder: Path, max_bytes: int, num_workers: int) -> None:
        """Nothing is made before the first image.

        Args:
            folder: shared by whoever likes; may be deleted at any time.
            max_bytes: of all images in it together; surpassed by a few percent for moments.
            num_workers: downloads at the same time.
        """
        self.folder, self._max_bytes, self._num_workers = folder, max_bytes, num_workers
        self._lock = Lock()
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        self._in_flight: dict[str, Future[Path]] = {}
        self._unchecked_bytes: int | None = None

    def open(self, uri: str, image_id: str, reader: Callable[[Path], _Result]) -> _Result:
        """Call ``reader`` with the image's file.

        Raises:
            ChangedObjectError: other bytes lie at the uri now.
            MissingObjectError: nothing does.
            ObjectStoreError: the store is away, even after some attempts, or refuses.
        """
        for _ in range(_MAX_ATTEMPTS):
            with suppress(FileNotFoundError):  # another process needed the room in this very moment
                return reader(self._local(uri, image_id))
        return reader(self._local(uri, image_id))

    def prefetch(self, images: Iterable[tuple[str, str]]) -> None:
        """Begin to fetch images (uri, image id) that will be used soon; errors are raised on use."""
        for uri, image_id in images:
            if not self._path(image_id).is_file():
                self._start_fetch(uri, image_id)

    def add(self, uri: str) -> tuple[Path, str]:
        """Fetch an object of unknown content; return its file and its SHA-256.

        Raises:
            ObjectStoreError: missing, away, or refused.
        """
        part, sha256 = self._download(uri)
        return self._store(part, image_id_from_sha256(sha256)), sha256

    def _local(self, uri: str, image_id: str) -> Path:
        path = self._path(image_id)
        try:
            os.utime(path)  # the newest use; mounts without access times have nothing else to go by
        except FileNotFoundError:
            return self._start_fetch(uri, image_id).result()
        return path

    def _path(self, image_id: str) -> Path:
        return self.folder / image_id[:2] / image_id

    def _start_fetch(self, uri: str, image_id: str) -> Future[Path]:
        """Start the download of an image, one for all threads that request it."""
        with self._lock:
            if self._threads is None or self._threads[0] != os.getpid():  # threads do not survive a fork
                self._threads = os.getpid(), ThreadPoolExecutor(self._num_workers, thread_name_prefix="fetch")
                self._in_flight.clear()
            download = self._in_flight.get(image_id)
            if download is None:
                download = self._in_flight[image_id] = self._threads[1].submit(self._fetch, uri, image_id)
            return download

    def _fetch(self, uri: str, image_id: str) -> Path:
        try:
            part, sha256 = self._download(uri)
            if image_id_from_sha256(sha256) != image_id:
                part.unlink()
                problem = f"the SHA-256 of the object begins with {image_id_from_sha256(sha256)}, expected {image_id}"
                raise ChangedObjectError(uri, problem, "The image was changed; run: gleaner pool sync")
            return self._store(part, image_id)
        finally:
            with self._lock:
                self._in_flight.pop(image_id, None)

    def _download(self, uri: str) -> tuple[Path, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._evict_if_needed()
        part = self.folder / f"{os.getpid()}-{secrets.token_hex(6)}{_PART_SUFFIX}"
        for attempt in range(_MAX_ATTEMPTS):
            try:
                with part.open("wb") as stream:
                    return part, fetch_object(uri, stream)
            except ObjectStoreUnavailable:
                part.unlink(missing_ok=True)
                if attempt + 1 == _MAX_ATTEMPTS:
                    raise
                time.sleep(_INITIAL_BACKOFF_S * 2**attempt)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        raise AssertionError("the last attempt returns or raises")

    def _store(self, part: Path, image_id: str) -> Path:
        """Not fsynced: after a power cut a file may be empty, so ``_evict_if_needed`` throws those away."""
        path = self._path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = part.stat().st_size
        part.replace(path)
        with self._lock:
            self._unchecked_bytes = (self._unchecked_bytes or 0) + size
        return path

    def _evict_if_needed(self) -> None:
        """Add up the sizes from time to time, and delete the least recently used files above the limit."""
        with self._lock:
            if self._unchecked_bytes is not None and self._unchecked_bytes < _CHECK_EVERY_FRAC * self._max_bytes:
                return
            self._unchecked_bytes = 0
        with suppress(Timeout), FileLock(self.folder / ".lock", timeout=0):  # another process evicts already
            self._evict()

    def _evict(self) -> None:
        cached = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.is_dir() or path.name == ".lock":
                    continue
                is_stale = path.suffix == _PART_SUFFIX and time.time() - stat.st_mtime > _STALE_PART_S
                if is_stale or (path.suffix != _PART_SUFFIX and stat.st_size == 0):
                    path.unlink()
                else:
                    cached.append((stat.st_mtime, stat.st_size, path))
        total_bytes = sum(size for _, size, _ in cached)
        if total_bytes <= self._max_bytes:
            return
        for _, size, path in sorted(cached):
            if total_bytes <= _EVICT_TO_FRAC * self._max_bytes:
                return
            if path.suffix != _PART_SUFFIX:
                path.unlink(missing_ok=True)
                total_bytes -= size


def image_cache(workspace: Workspace) -> ImageCache:
    """Return the cache of this machine, where the environment names one, else of the campaign.

    Its limits stand in section ``pool`` of params.yaml. No stage declares that section to DVC: where bytes come from,
    and how many are kept, changes no result.
    """
    pool = load_params(workspace.params).pool
    configured = os.environ.get(CACHE_FOLDER_ENV)
    folder = Path(configured).expanduser() if configured else workspace.scratch("images")
    return ImageCache(folder, int(pool.cache_gib * 2**30), pool.num_download_workers)
