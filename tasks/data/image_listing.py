"""List, inspect and copy the user's images: in a folder, in a zip archive, or below an s3:// prefix."""

import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from tasks.data.archives import FileSource, FolderSource, ZipSource, is_junk, open_source
from tasks.data.formats.recognize import is_image
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_metadata_cache import ImageMetadataCache
from tasks.data.images import ImageMetadata, inspect_image
from tasks.runtime.concurrency import map_threads
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.storage.s3 import ObjectMetadata, list_objects

_MAX_ARCHIVED_BYTES = 1 << 30
_MAX_OBJECT_BYTES = 1 << 30
"""Of one image in an archive."""


class ImageListing(Protocol):
    """Image files by name: their paths below the folder, the archive or the prefix, with forward slashes."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Number of the other files, by ending."""
        ...

    @property
    def skipped_links(self) -> Sequence[str]:
        """Links to images and folders that were not followed."""
        ...

    def names(self) -> Iterator[str]:
        """Yield the names of all files that end like a picture, sorted."""
        ...

    def inspect(self, name: str) -> ImageMetadata:
        """Hash and decode one image.

        Raises:
            ImageProblem: it is missing or cannot be used.
        """
        ...

    def uri_of(self, name: str) -> str | None:
        """Return the s3:// URI of an image that stays where it is; None: it has to be copied."""
        ...

    def copy(self, name: str, target: Path) -> None:
        """Write the bytes of an image to a file.

        Raises:
            UserError: they cannot be read any more.
        """
        ...


class _ListedFiles:
    """What folders and archives have in common."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self._images = tuple(name for name in source.names() if is_image(name))
        others = (ending_of(name) for name in source.names() if not is_image(name))
        self.passed_over: Mapping[str, int] = dict(Counter(others).most_common())

    def __str__(self) -> str:
        """Name of the folder or archive, for messages."""
        return self.source.where

    def names(self) -> Iterator[str]:
        """Yield the names of all files that end like a picture, sorted."""
        return iter(self._images)

    def uri_of(self, name: str) -> str | None:
        """Return None: the image has to be copied."""
        return None


class ImageFolder(_ListedFiles):
    """Images of a local folder. Names from annotations are untrusted text."""

    def __init__(self, root: Path, max_pixels: int, *, follow_links: bool = False) -> None:
        """List the folder.

        Args:
            root: the folder.
            max_pixels: images with more pixels are refused undecoded.
            follow_links: whether links to files and folders are followed.

        Raises:
            UserError: it is missing.
        """
        if not root.is_dir():
            raise UserError(root, "the images folder is missing, expected a folder", "Check --images.")
        self.root, self._max_pixels, self._follow_links = root, max_pixels, follow_links
        listed = FolderSource(root, follow_links=follow_links)
        super().__init__(listed)
        self.skipped_links: Sequence[str] = sorted(listed.skipped_links)

    def locate(self, name: str) -> Path:
        """Return the path of a file below the folder.

        Raises:
            ImageProblem: the name is absolute, climbs out, leaves through a link, or is no file name at all.
        """
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise ImageProblem(f"the file name is {name[:100]!r}, expected a name inside the images folder")
        try:
            path = self.root.joinpath(*pure.parts)
            inside = self._follow_links or path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError, UnicodeEncodeError):  # too long, a loop of links, lone surrogates
            raise ImageProblem(f"the file name is {name[:100]!r}, expected one the system accepts") from None
        if not inside:
            raise ImageProblem(f"the file {name!r} is a link out of the images folder, expected a file in it")
        return path

    def inspect(self, name: str) -> ImageMetadata:
        """Locate, hash and decode one image.

        Raises:
            ImageProblem: as in ``locate`` and ``tasks.data.images.inspect_image``.
        """
        return inspect_image(self.locate(name), max_pixels=self._max_pixels)

    def copy(self, name: str, target: Path) -> None:
        """Write the bytes of an image to a file. Copies, never links: DVC makes its files read-only."""
        try:
            target.write_bytes(self.locate(name).read_bytes())
        except (OSError, ImageProblem) as error:
            raise UserError(self.root / name, f"the image is unreadable ({error}), expected a file") from None


class ImageArchive(_ListedFiles):
    """Images of a zip archive, read in place."""

    skipped_links: Sequence[str] = ()

    def __init__(self, source: ZipSource, max_pixels: int) -> None:
        """List the archive."""
        super().__init__(source)
        self._max_pixels = max_pixels

    def inspect(self, name: str) -> ImageMetadata:
        """Unpack, hash and decode one image.

        Raises:
            ImageProblem: it cannot be unpacked or used.
        """
        try:
            content = self.source.read(name, _MAX_ARCHIVED_BYTES)
        except UserError as error:
            raise ImageProblem(error.problem) from None
        with tempfile.NamedTemporaryFile(prefix="gleaner-image-") as unpacked:
            unpacked.write(content)
            unpacked.flush()
            return inspect_image(Path(unpacked.name), max_pixels=self._max_pixels)

    def copy(self, name: str, target: Path) -> None:
        """Write the bytes of an image to a file."""
        target.write_bytes(self.source.read(name, _MAX_ARCHIVED_BYTES))


class ImageBucket:
    """Images below an s3:// prefix, which stay there; they are fetched and measured when the listing is made."""

    skipped_links: Sequence[str] = ()

    def __init__(
        self, prefix_uri: str, metadata_cache: ImageMetadataCache, *, num_workers: int, max_pixels: int
    ) -> None:
        """List and open everything that ends like a picture.

        Args:
            prefix_uri: s3://bucket/prefix.
            metadata_cache: what earlier calls found.
            num_workers: images opened at the same time.
            max_pixels: images with more pixels are refused undecoded.

        Raises:
            ObjectStoreError: away, refused, or no such bucket.
        """
        self._prefix = prefix_uri.rstrip("/") + "/"
        objects: deque[ObjectMetadata] = deque()
        others: Counter[str] = Counter()
        for facts in list_objects(self._prefix):
            name = facts.uri.removeprefix(self._prefix)
            if any(is_junk(part) for part in PurePosixPath(name).parts):
                continue
            if is_image(name):
                objects.append(facts)
            else:
                others[ending_of(name)] += 1
        self.passed_over: Mapping[str, int] = dict(others.most_common())

        def inspect(facts: ObjectMetadata) -> tuple[str, ImageMetadata | ImageProblem]:
            return facts.uri.removeprefix(self._prefix), _inspect_object(facts, metadata_cache, max_pixels)

        total, taken = len(objects), (objects.popleft() for _ in range(len(objects)))  # what was taken needs no memory
        self._images = dict(track(map_threads(inspect, taken, num_workers=num_workers), "fetching images", total=total))

    def __str__(self) -> str:
        """Return the prefix, for messages."""
        return self._prefix

    def uri_of(self, name: str) -> str:
        """Return the URI of an image."""
        return self._prefix + name

    def metadata_of(self, name: str) -> ImageMetadata | ImageProblem:
        """Return what an image of ``names`` turned out to be."""
        return self._images[name]

    def inspect(self, name: str) -> ImageMetadata:
        """Return what one image turned out to be.

        Raises:
            ImageProblem: there is none of that name, or it cannot be used.
        """
        found = self._images.get(name)
        if found is None:
            raise ImageProblem("the image file is missing, expected an object below the prefix")
        if isinstance(found, ImageProblem):
            raise found
        return found

    def names(self) -> Iterator[str]:
        """Yield the names of all objects that end like a picture, sorted."""
        return iter(sorted(self._images))

    def copy(self, name: str, target: Path) -> None:
        """Objects stay where they are."""
        raise NotImplementedError(f"{self.uri_of(name)} is not copied to {target}")


def _inspect_object(
    facts: ObjectMetadata, metadata_cache: ImageMetadataCache, max_pixels: int
) -> ImageMetadata | ImageProblem:
    if facts.size_bytes > _MAX_OBJECT_BYTES:  # known before it is fetched
        size, limit = (f"{number >> 20} MiB" for number in (facts.size_bytes, _MAX_OBJECT_BYTES))
        return ImageProblem(f"the object has {size}, expected at most {limit} for an image")
    try:
        return metadata_cache.inspect(facts.uri, facts.etag, max_pixels=max_pixels)
    except ImageProblem as problem:
        return problem


def list_images(images: Path | ImageListing, *, max_pixels: int, follow_links: bool = False) -> ImageListing:
    """List a folder or a zip archive; a listing stays as it is.

    Raises:
        UserError: no such folder or archive.
    """
    if not isinstance(images, Path):
        return images
    if images.is_file():
        return image_files(open_source(images), max_pixels=max_pixels)
    return ImageFolder(images, max_pixels, follow_links=follow_links)


def image_files(source: FileSource, *, max_pixels: int, follow_links: bool = False) -> ImageListing:
    """List the images of an opened folder or archive."""
    if isinstance(source, FolderSource):
        return ImageFolder(source.root, max_pixels, follow_links=follow_links)
    assert isinstance(source, ZipSource)
    return ImageArchive(source, max_pixels)


def inspect_images(listing: ImageListing, names: Iterable[str]) -> dict[str, ImageMetadata | ImageProblem]:
    """Hash and decode images side by side; of what cannot be used the problem is kept."""

    def inspect(name: str) -> ImageMetadata | ImageProblem:
        if not is_utf8(name):
            return ImageProblem("the file name is no UTF-8, expected one that every system reads. Rename the file")
        try:
            return listing.inspect(name)
        except ImageProblem as problem:
            return problem

    wanted = list(dict.fromkeys(names))
    inspected = track(map_threads(inspect, wanted), "reading images", total=len(wanted))
    return dict(zip(wanted, inspected, strict=True))


def is_utf8(name: str) -> bool:
    """Whether a file name can be written in UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()
