"""Opening pictures nobody vouches for: limits before decoding, every failure one sentence."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from tasks.storage import files

# MPO is what Pillow calls the JPEG of many phones: a JPEG with a second picture behind it.
_SUFFIX_OF_FORMAT = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "TIFF": ".tif",
}
_ALLOWED_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# Converting 16-bit or float pixels to RGB saturates them to white without a word.
_HIGH_BIT_DEPTH_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""File name endings that are taken for pictures, in lower case."""


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
        ImageProblem: missing, not a plain file, not a known format, too large, broken, or not 8 bits deep.
    """
    try:
        if not path.is_file():  # a FIFO named a.jpg would block for ever
            raise ImageProblem("the image file is missing, expected a file")
        width_px, height_px, suffix, orientation, num_frames = _decode(path, max_pixels)
        digest = files.sha256_file(path)
        return ImageMetadata(width_px, height_px, suffix, path.stat().st_size, digest, orientation, num_frames)
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...: no list
        raise ImageProblem(f"the image is unreadable ({_first_line(error)}), expected a whole image") from None


def open_rgb(path: Path) -> Image.Image:
    """Pixels as RGB and upright, in the frame that widths, heights and boxes are given in.

    Raises:
        OSError: missing or broken.
    """
    with Image.open(path, formats=_ALLOWED_FORMATS) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _decode(path: Path, max_pixels: int) -> tuple[int, int, str, int, int]:
    """Width and height as displayed, suffix, EXIF orientation and number of frames."""
    with Image.open(path, formats=_ALLOWED_FORMATS) as image:
        width_px, height_px = image.size
        if width_px * height_px > max_pixels:
            raise ImageProblem(f"the image has {width_px * height_px} pixels, expected at most {max_pixels}")
        if image.mode in _HIGH_BIT_DEPTH_MODES:
            raise ImageProblem(f"the pixel mode is {image.mode}, expected 8 bits a channel")
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION)
        if orientation in _TRANSPOSED_ORIENTATIONS:
            width_px, height_px = height_px, width_px
        orientation = next((turn for turn in range(1, 9) if turn == orientation), 1)
        # The second picture of a phone's MPO is a depth map or a preview, no page.
        num_frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        return width_px, height_px, _SUFFIX_OF_FORMAT[str(image.format)], orientation, num_frames


def _first_line(error: Exception) -> str:
    """The error's text without the local path, which Pillow and the system like to quote."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).splitlines() or [""])[0]
    return "no known image format" if text.startswith("cannot identify image file") else text or type(error).__name__
