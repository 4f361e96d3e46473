"""Open image files from untrusted sources: limits before decoding, one rule for pixels, every refusal named.

All code that reads an image of the campaign uses ``inspect_image`` or ``open_rgb``, so that training, inference, the
report, the served model and the annotators' browsers show the same pixels. ``ImageSource`` finds the file of an image:
in the workspace, or in the local cache of objects in a store.
"""

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tasks.data.image_decoding import (
    MAX_PIXELS,
    TRANSPOSED_ORIENTATIONS,
    ImageProblem,
    exif_captured_at,
    exif_orientation,
    num_frames,
    open_image,
    open_rgb,
)
from tasks.data.paths import Workspace, resolve_uri
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.image_cache import ImageCache, image_cache
from tasks.storage.s3 import ObjectStoreError, is_object_uri

# MPO is what Pillow calls the JPEG of many phones: a JPEG with a second picture behind it.
_SUFFIX_OF_FORMAT = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "PPM": ".ppm",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
_BROWSER_MODES = {
    "JPEG": ("L", "RGB"),
    "MPO": ("L", "RGB"),
    "PNG": ("1", "L", "LA", "P", "PA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB", "RGBA"),
}
"""Formats and pixel modes that every browser shows; it turns none of them but JPEG by the EXIF orientation for sure."""
_ERROR_MODULES = "|".join(re.escape(source.__module__) for source in (ObjectStoreError, ImageCache, UserError))
_WORKER_ERROR = re.compile(rf"^({_ERROR_MODULES})\.(\w+): (.+)$", re.MULTILINE)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What was found by reading and decoding a whole image file."""

    width_px: int
    """As displayed: after the EXIF orientation, which label tools and Detectron2 apply too."""
    height_px: int
    suffix: str
    """File name ending of the format found inside; the file may be named otherwise."""
    size_bytes: int
    sha256: str
    exif_orientation: int = 1
    """1 to 8; anything but 1 means that the stored pixels are turned or mirrored when shown."""
    num_frames: int = 1
    """Pictures in an animated or many-page file, of which the first is used."""


def inspect_image(path: Path, *, max_pixels: int) -> ImageMetadata:
    """Hash and fully decode one image file.

    Args:
        path: a local file.
        max_pixels: images with more pixels are refused on their header, before any decoding.

    Raises:
        ImageProblem: missing, not a plain file, not a known format, too large, broken, or of a pixel mode without a
            rule.
    """
    try:
        if not path.is_file():  # opening a FIFO named a.jpg would block
            raise ImageProblem("the image file is missing, expected a file")
        width_px, height_px, suffix, orientation, num_frames = _decode(path, max_pixels)
        digest = files.sha256_file(path)
        return ImageMetadata(width_px, height_px, suffix, path.stat().st_size, digest, orientation, num_frames)
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...: no list
        raise ImageProblem(f"the image is unreadable ({_first_line(error)}), expected a whole image") from None


def is_shown_by_browsers(path: Path) -> bool:
    """Tell whether browsers show an image with the pixels of ``open_rgb``.

    They show no TIFF, HEIC or PPM; they play what is animated, and some ignore the EXIF orientation of other formats
    than JPEG.

    Raises:
        OSError: missing or broken.
        ImageProblem: a pixel mode without a rule.
    """
    with open_image(path, MAX_PIXELS) as image:
        if image.mode not in _BROWSER_MODES.get(str(image.format), ()):
            return False
        if image.format in ("JPEG", "MPO"):
            return True
        image.load()
        return num_frames(image) == 1 and exif_orientation(image) == 1


def captured_hour(path: Path) -> int | None:
    """Return the hour, 0 to 23, of the camera's clock when it took an image; None: the file does not say.

    Raises:
        OSError: missing or broken.
        ImageProblem: a pixel mode without a rule.
    """
    with open_image(path, MAX_PIXELS) as image:
        captured_at = exif_captured_at(image)
        return None if captured_at is None else captured_at.hour


def encode_png(path: Path) -> bytes:
    """Return the pixels of ``open_rgb`` as a PNG, which every browser shows.

    Raises:
        OSError: missing or broken.
        ImageProblem: a pixel mode without a rule.
    """
    stream = io.BytesIO()
    open_rgb(path).save(stream, "PNG", compress_level=4)
    return stream.getvalue()


def _decode(path: Path, max_pixels: int) -> tuple[int, int, str, int, int]:
    """Return width and height as displayed, suffix, EXIF orientation and number of frames."""
    with open_image(path, max_pixels) as image:
        image.load()
        width_px, height_px = image.size
        orientation = exif_orientation(image)
        if orientation in TRANSPOSED_ORIENTATIONS:
            width_px, height_px = height_px, width_px
        return width_px, height_px, _SUFFIX_OF_FORMAT[str(image.format)], orientation, num_frames(image)


def _first_line(error: Exception) -> str:
    """Return the error's text without the local path that Pillow and the system put into it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).splitlines() or [""])[0]
    return "no known image format" if text.startswith("cannot identify image file") else text or type(error).__name__


@contextmanager
def translate_image_errors(uri: str) -> Iterator[None]:
    """Name the image that cannot be shown to people.

    Raises:
        UserError: it is missing, broken, or of a pixel mode without a rule.
    """
    try:
        yield
    except ImageProblem as problem:
        raise UserError(uri, str(problem), "Run: dvc repro prepare") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(uri, f"the image cannot be read ({reason})", "Run: dvc checkout") from None


@contextmanager
def translate_worker_errors(stage: str) -> Iterator[None]:
    """Raise an error about an image with its class, which PyTorch turns into text when a loader process raises it.

    Raises:
        UserError: one of the block's loader processes raised it.
    """
    try:
        yield
    except RuntimeError as error:
        messages = _WORKER_ERROR.findall(str(error))
        if not messages:
            raise
        module, name, message = messages[-1]
        raise getattr(sys.modules[module], name)(stage, message.rstrip(".")) from None


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
