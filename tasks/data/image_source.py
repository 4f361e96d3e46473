"""Open the images of a campaign: files of the workspace, or objects in a store through a local cache."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tasks.data.paths import Workspace, resolve_uri
from tasks.storage.image_cache import ImageCache, image_cache
from tasks.storage.s3 import ObjectStoreError, ObjectStoreUnavailable, is_object_uri

_ERROR_MODULES = "|".join(re.escape(source.__module__) for source in (ObjectStoreError, ImageCache))
_WORKER_ERROR = re.compile(rf"^(?:{_ERROR_MODULES})\.(\w+): (.+)$", re.MULTILINE)
_Result = TypeVar("_Result")


@contextmanager
def translate_worker_errors(stage: str) -> Iterator[None]:
    """Raise an error of the object store with its class, which PyTorch turns into text when a loader process raises it.

    Raises:
        ObjectStoreError: one of the block's loader processes raised it.
    """
    try:
        yield
    except RuntimeError as error:
        messages = _WORKER_ERROR.findall(str(error))
        if not messages:
            raise
        error_class = ObjectStoreUnavailable if messages[-1][0] == ObjectStoreUnavailable.__name__ else ObjectStoreError
        raise error_class(stage, messages[-1][1].rstrip(".")) from None


class ImageSource:
    """Image files of the workspace at ``root`` by their uris.

    Only objects need ``params.yaml``, for the size of their cache.
    """

    def __init__(self, root: Path) -> None:
        """Remember the root; nothing is read before the first s3 uri."""
        self._root = root
        self._cache: ImageCache | None = None

    def open(self, uri: str, image_id: str, reader: Callable[[Path], _Result]) -> _Result:
        """Call ``reader`` with the image's local file.

        Raises:
            ValueError: a path that leaves the workspace.
            ObjectStoreError: an object that is missing, changed, or out of reach.
            Exception: what ``reader`` raises.
        """
        if is_object_uri(uri):
            return self.cache.open(uri, image_id, reader)
        return reader(resolve_uri(self._root, uri))

    def prefetch(self, images: Iterable[Mapping[str, str]]) -> None:
        """Begin to fetch images (rows with ``uri`` and ``image_id``) that will be used soon."""
        remote = [(image["uri"], image["image_id"]) for image in images if is_object_uri(image["uri"])]
        if remote:
            self.cache.prefetch(remote)

    @property
    def cache(self) -> ImageCache:
        """The cache of this machine, where the environment names one, else of this campaign."""
        if self._cache is None:
            self._cache = image_cache(Workspace(self._root))
        return self._cache
