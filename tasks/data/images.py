"""Open image files from untrusted sources: limits before decoding, one rule for pixels, every refusal named.

All code that reads an image of the campaign uses ``inspect_image`` or ``open_rgb``, so that training, inference, the
report, the served model and the annotators' browsers show the same pixels. ``ImageSource`` finds the file of an image:
in the workspace, or in the local cache of objects in a store.
"""

import io
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image

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
_ALLOWED_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF")
_HEIF = "HEIF"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
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
_EXIF_ORIENTATION = 0x0112
_EXIF_INTEGER_TYPES = {1: "B", 3: "H", 4: "I"}
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# Pillow would convert 16-bit gray and float pixels to RGB by saturating them to white, without a warning. Of 16-bit RGB
# and gray with alpha it keeps the upper byte of each channel, which loses nothing that a detector sees.
_HIGH_BIT_DEPTH_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")

MAX_PIXELS = 500_000_000
"""Pixels that any image may have; 1.5 GB as RGB. ``prepare.max_pixels`` is at most this."""


class ImageProblem(ValueError):
    """Why a file cannot be used as an image: ``the <what> is <value>, expected <allowed>``."""


@dataclass(frozen=True)
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


def open_rgb(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to upright RGB pixels, 8 bits a channel, in the frame of its boxes.

    The pixels are turned by the EXIF orientation and by nothing else. Where EXIF is broken, they stay as stored.
    Transparent pixels are composited on white. Of 16-bit color the upper byte is kept (PPM: rounded).
    16-bit gray is refused. Of several frames the first is used.

    Args:
        source: a local file, or a binary stream with the content of one.
        max_pixels: images with more pixels are refused on their header, before any decoding.

    Raises:
        OSError: missing or broken.
        ImageProblem: too many pixels, or a pixel mode without a rule.
    """
    with _open(source, max_pixels) as image:
        image.load()
        transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(image))
        rgb = _to_rgb(image)
        return rgb if transpose is None else rgb.transpose(transpose)


def is_shown_by_browsers(path: Path) -> bool:
    """Tell whether browsers show an image with the pixels of ``open_rgb``.

    They show no TIFF, HEIC or PPM; they play what is animated, and some ignore the EXIF orientation of other formats
    than JPEG.

    Raises:
        OSError: missing or broken.
        ImageProblem: a pixel mode without a rule.
    """
    with _open(path, MAX_PIXELS) as image:
        if image.mode not in _BROWSER_MODES.get(str(image.format), ()):
            return False
        if image.format in ("JPEG", "MPO"):
            return True
        image.load()
        return _num_frames(image) == 1 and _orientation(image) == 1


def encode_png(path: Path) -> bytes:
    """Return the pixels of ``open_rgb`` as a PNG, which every browser shows.

    Raises:
        OSError: missing or broken.
        ImageProblem: a pixel mode without a rule.
    """
    stream = io.BytesIO()
    open_rgb(path).save(stream, "PNG", compress_level=4)
    return stream.getvalue()


@cache
def _register_heif() -> bool:
    """Teach Pillow to read HEIC, where pillow-heif is installed (extra ``heic``); tell whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _is_heif(stream: BinaryIO) -> bool:
    start = stream.tell()
    head = stream.read(64)
    stream.seek(start)
    other_brands = head[16 : int.from_bytes(head[:4], "big")]  # mif1 is the general one: AVIF may begin with it too
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in other_brands


@contextmanager
def _open(source: Path | BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image without decoding it, after checks on its header."""
    # Pillow's own limit is global and would warn at 90 million pixels. It is raised, not removed, since other code of
    # the process may rely on it.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, MAX_PIXELS)
    with ExitStack() as stack:
        # Always a stream: of a path Pillow maps uncompressed TIFFs into memory, and scrambles those it has to turn.
        stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        is_heif = _is_heif(stream)
        if is_heif and not _register_heif():
            raise ImageProblem("the format is HEIC, expected pillow-heif to read it: pip install 'gleaner[heic]'")
        try:
            image = stack.enter_context(Image.open(stream, formats=(_HEIF,) if is_heif else _ALLOWED_FORMATS))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageProblem(f"the image has more than {MAX_PIXELS} pixels, expected at most {max_pixels}") from None
        num_pixels = image.width * image.height
        if num_pixels > max_pixels:
            raise ImageProblem(f"the image has {num_pixels} pixels, expected at most {max_pixels}")
        if image.mode in _HIGH_BIT_DEPTH_MODES:
            raise ImageProblem(f"the pixel mode is {image.mode}, expected 8 bits a channel")
        if image.mode not in _MODES:
            raise ImageProblem(f"the pixel mode is {image.mode}, expected one of {', '.join(_MODES)}")
        yield image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a decoded image, 1 to 8; 1 where it is absent, unknown or unreadable.

    Only this tag is read, so that broken tags beside it do no harm. ``Image.getexif`` would read all of them, and the
    orientation in XMP, which browsers and label tools ignore. TIFFs and HEIC are turned on decoding: here they give 1.
    """
    block = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    byte_order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if byte_order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{byte_order}I", block, 4)
        (num_tags,) = struct.unpack_from(f"{byte_order}H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_tags, 12):
            tag, field_type = struct.unpack_from(f"{byte_order}HH", block, entry)
            if tag == _EXIF_ORIENTATION and field_type in _EXIF_INTEGER_TYPES:
                (value,) = struct.unpack_from(byte_order + _EXIF_INTEGER_TYPES[field_type], block, entry + 8)
                return value if value in _TRANSPOSE_OF_ORIENTATION else 1
    except struct.error:  # an offset or a count that leads out of the block
        pass
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; pixels that are not opaque are composited on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _decode(path: Path, max_pixels: int) -> tuple[int, int, str, int, int]:
    """Return width and height as displayed, suffix, EXIF orientation and number of frames."""
    with _open(path, max_pixels) as image:
        image.load()
        width_px, height_px = image.size
        orientation = _orientation(image)
        if orientation in _TRANSPOSED_ORIENTATIONS:
            width_px, height_px = height_px, width_px
        return width_px, height_px, _SUFFIX_OF_FORMAT[str(image.format)], orientation, _num_frames(image)


def _num_frames(image: Image.Image) -> int:
    """Count pages or pictures. The second one of a phone's MPO is a depth map or a preview, no page."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _first_line(error: Exception) -> str:
    """Return the error's text without the local path that Pillow and the system put into it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).splitlines() or [""])[0]
    return "no known image format" if text.startswith("cannot identify image file") else text or type(error).__name__


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
