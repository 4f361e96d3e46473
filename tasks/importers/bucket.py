"""The user's images in an object store: listed, fetched and measured once, all at the start."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from tasks.images import SUFFIXES, ImageFacts, ImageProblem
from tasks.object_store import ObjectFacts, list_objects
from tasks.progress import track
from tasks.seen_images import SeenImages


class ImageBucket:
    """Images below an s3:// prefix, by the names annotations use for them: what follows the prefix."""

    def __init__(self, prefix_uri: str, seen: SeenImages, *, workers: int, max_pixels: int) -> None:
        """List and open everything that ends like a picture.

        Args:
            prefix_uri: s3://bucket/prefix.
            seen: what earlier calls found.
            workers: images opened at the same time.
            max_pixels: images with more are refused undecoded.

        Raises:
            ObjectStoreError: away, refused, or no such bucket.
        """
        self._prefix = prefix_uri.rstrip("/") + "/"
        listed = [facts for facts in list_objects(self._prefix) if _is_picture(facts.uri.removeprefix(self._prefix))]

        def look(found: ObjectFacts) -> ImageFacts | ImageProblem:
            try:
                return seen.inspect(found.uri, found.etag, max_pixels=max_pixels)
            except ImageProblem as problem:
                return problem

        with ThreadPoolExecutor(workers) as threads:
            looked = track(threads.map(look, listed), "fetching images", total=len(listed))
            self._found = {
                facts.uri.removeprefix(self._prefix): image for facts, image in zip(listed, looked, strict=True)
            }

    def __str__(self) -> str:
        """The prefix, for messages."""
        return self._prefix

    def uri_of(self, file_name: str) -> str:
        """Where an image lies."""
        return self._prefix + file_name

    def facts_of(self, file_name: str) -> ImageFacts | ImageProblem:
        """What an image of ``names`` turned out to be."""
        return self._found[file_name]

    def inspect(self, file_name: str) -> tuple[str, ImageFacts]:
        """Uri and facts of one image.

        Raises:
            ImageProblem: there is none of that name, or it cannot be used.
        """
        found = self._found.get(file_name)
        if found is None:
            raise ImageProblem("the image file is missing, expected an object below the prefix")
        if isinstance(found, ImageProblem):
            raise found
        return self.uri_of(file_name), found

    def names(self) -> Iterator[str]:
        """Names of all objects that end like a picture, sorted."""
        return iter(sorted(self._found))


def _is_picture(name: str) -> bool:
    pure = PurePosixPath(name)
    return pure.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in pure.parts)
