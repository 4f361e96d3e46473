"""Decode image files from untrusted sources with Pillow alone: limits before decoding, one rule for pixels.

Imports nothing of Gleaner, because exported detectors bring this file along.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

_ALLOWED_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF")
_HEIF = "HEIF"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_EXIF_ORIENTATION = 0x0112
_EXIF_DIRECTORY = 0x8769
_EXIF_CAPTURED_AT = 0x9003
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
TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# Pillow would convert 16-bit gray and float pixels to RGB by saturating them to white, without a warning. Of 16-bit RGB
# and gray with alpha it keeps the upper byte of each channel, which loses nothing that a detector sees.
_HIGH_BIT_DEPTH_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")

MAX_PIXELS = 500_000_000
"""Pixels that any image may have; 1.5 GB as RGB. ``prepare.max_pixels`` is at most this."""


class ImageProblem(ValueError):
    """Why a file cannot be used as an image: ``the <what> is <value>, expected <allowed>``."""


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
    with open_image(source, max_pixels) as image:
        image.load()
        transpose = _TRANSPOSE_OF_ORIENTATION.get(exif_orientation(image))
        rgb = _to_rgb(image)
        return rgb if transpose is None else rgb.transpose(transpose)


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
def open_image(source: Path | BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
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


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a decoded image, 1 to 8; 1 where it is absent, unknown or unreadable.

    Only this tag is read, so that broken tags beside it do no harm. ``Image.getexif`` would read all of them, and the
    orientation in XMP, which browsers and label tools ignore. TIFFs and HEIC are turned on decoding: here they give 1.
    """
    block, byte_order = _exif_block(image)
    try:
        (directory,) = struct.unpack_from(f"{byte_order}I", block, 4)
        field_type, entry = _find_exif_tag(block, byte_order, directory, _EXIF_ORIENTATION)
        (value,) = struct.unpack_from(byte_order + _EXIF_INTEGER_TYPES[field_type], block, entry + 8)
    except (struct.error, LookupError):  # an offset or a count that leads out of the block, or no such tag
        return 1
    return value if value in _TRANSPOSE_OF_ORIENTATION else 1


def exif_captured_at(image: Image.Image) -> datetime | None:
    """Return when the camera took an image, by its clock (DateTimeOriginal); None where absent or unreadable.

    Read as ``exif_orientation`` is: only the tags on the way to it.
    """
    block, byte_order = _exif_block(image)
    try:
        (directory,) = struct.unpack_from(f"{byte_order}I", block, 4)
        _, entry = _find_exif_tag(block, byte_order, directory, _EXIF_DIRECTORY)
        (directory,) = struct.unpack_from(f"{byte_order}I", block, entry + 8)
        _, entry = _find_exif_tag(block, byte_order, directory, _EXIF_CAPTURED_AT)
        (position,) = struct.unpack_from(f"{byte_order}I", block, entry + 8)
        return datetime.strptime(block[position : position + 19].decode("ascii"), "%Y:%m:%d %H:%M:%S")
    except (struct.error, LookupError, ValueError):
        return None


def _exif_block(image: Image.Image) -> tuple[bytes, str]:
    """The EXIF data and their byte order as ``struct`` writes it; without EXIF no bytes."""
    block = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    byte_order = {b"II": "<", b"MM": ">"}.get(block[:2])
    return (b"", "<") if byte_order is None else (block, byte_order)


def _find_exif_tag(block: bytes, byte_order: str, directory: int, wanted: int) -> tuple[int, int]:
    """Return type and position of the entry of a tag; orientation only counts as an integer.

    Raises:
        struct.error: an offset or a count leads out of the block.
        LookupError: there is no such tag.
    """
    (num_tags,) = struct.unpack_from(f"{byte_order}H", block, directory)
    for entry in range(directory + 2, directory + 2 + 12 * num_tags, 12):
        tag, field_type = struct.unpack_from(f"{byte_order}HH", block, entry)
        if tag == wanted and (tag != _EXIF_ORIENTATION or field_type in _EXIF_INTEGER_TYPES):
            return field_type, entry
    raise LookupError(wanted)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; pixels that are not opaque are composited on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def num_frames(image: Image.Image) -> int:
    """Count pages or pictures. The second one of a phone's MPO is a depth map or a preview, no page."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
