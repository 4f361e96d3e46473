"""The user's images in an object store: listed, fetched and measured once, all at the start."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from tasks.data.image_metadata_cache import ImageMetadataCache
from tasks.data.images import IMAGE_SUFFIXES, ImageMetadata, ImageProblem
from tasks.runtime.progress import track
from tasks.storage.s3 import ObjectMetadata, list_objects


class ImageBucket:
    """Images below an s3:// prefix, by the names annotations use for them: what follows the prefix."""

    def __init__(
        self, prefix_uri: str, metadata_cache: ImageMetadataCache, *, num_workers: int, max_pixels: int
    ) -> None:
        """List and open everything that ends like a picture.

        Args:
            prefix_uri: s3://bucket/prefix.
            metadata_cache: what earlier calls found.
            num_workers: images opened at the same time.
            max_pixels: images with more are refused undecoded.

        Raises:
            ObjectStoreError: away, refused, or no such bucket.
        """
        self._prefix = prefix_uri.rstrip("/") + "/"
        objects = [facts for facts in list_objects(self._prefix) if _is_image(facts.uri.removeprefix(self._prefix))]

        def inspect(object_metadata: ObjectMetadata) -> ImageMetadata | ImageProblem:
            try:
                return metadata_cache.inspect(object_metadata.uri, object_metadata.etag, max_pixels=max_pixels)
            except ImageProblem as problem:
                return problem

        with ThreadPoolExecutor(num_workers) as threads:
            inspected = track(threads.map(inspect, objects), "fetching images", total=len(objects))
            self._images = {
                facts.uri.removeprefix(self._prefix): image for facts, image in zip(objects, inspected, strict=True)
            }

    def __str__(self) -> str:
        """The prefix, for messages."""
        return self._prefix

    def uri_of(self, file_name: str) -> str:
        """Where an image lies."""
        return self._prefix + file_name

    def metadata_of(self, file_name: str) -> ImageMetadata | ImageProblem:
        """What an image of ``names`` turned out to be."""
        return self._images[file_name]

    def inspect(self, file_name: str) -> tuple[str, ImageMetadata]:
        """Uri and facts of one image.

        Raises:
            ImageProblem: there is none of that name, or it cannot be used.
        """
        found = self._images.get(file_name)
        if found is None:
            raise ImageProblem("the image file is missing, expected an object below the prefix")
        if isinstance(found, ImageProblem):
            raise found
        return self.uri_of(file_name), found

    def names(self) -> Iterator[str]:
        """Names of all objects that end like a picture, sorted."""
        return iter(sorted(self._images))


def _is_image(name: str) -> bool:
    pure = PurePosixPath(name)
    return pure.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in pure.parts)
