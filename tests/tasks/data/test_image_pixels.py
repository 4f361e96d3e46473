"""One picture has the same pixels wherever it is read: training, inference, report and served model."""

import base64
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.data.image_decoding import ImageProblem, open_rgb
from tasks.data.images import ImageSource, inspect_image
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import AnnotationTask
from tasks.model.detector import ImageReader
from tasks.model.pyfunc_model import _to_rgb
from tasks.reporting.thumbnails import thumbnail
from tasks.runtime.errors import UserError
from tasks.storage import files

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 5, 7
GRAY: Pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
RGB: Pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
CUTOUT: Pixels = np.where(GRAY < 128, 0, 255).astype(np.uint8)
ON_WHITE_RGB: Pixels = np.where(CUTOUT[..., None] == 0, 255, RGB).astype(np.uint8)
ON_WHITE_GRAY: Pixels = np.where(CUTOUT == 0, 255, GRAY).astype(np.uint8)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(CUTOUT))
    return image


def palette() -> Image.Image:
    image = Image.fromarray(GRAY).convert("P")
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    return image


def gray_as_rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


PALETTE_RGB = np.stack([GRAY, 255 - GRAY, np.full_like(GRAY, 7)], axis=2)
# Mode: the image to store, the options of saving it, the pixels that must be read.
MODES: dict[str, tuple[Image.Image, dict[str, object], Pixels]] = {
    "1": (Image.fromarray(CUTOUT).convert("1"), {}, gray_as_rgb(CUTOUT)),
    "L": (Image.fromarray(GRAY), {}, gray_as_rgb(GRAY)),
    "LA": (with_alpha(Image.fromarray(GRAY)), {}, gray_as_rgb(ON_WHITE_GRAY)),
    "L with a transparent level": (
        Image.fromarray(GRAY), {"transparency": int(GRAY[0, 0])}, gray_as_rgb(np.where(GRAY[0, 0] == GRAY, 255, GRAY))
    ),
    "P": (palette(), {}, PALETTE_RGB),
    "P with a transparent color": (
        palette(), {"transparency": int(GRAY[0, 0])}, np.where((GRAY[0, 0] == GRAY)[..., None], 255, PALETTE_RGB)
    ),
    "RGB": (Image.fromarray(RGB), {}, RGB),
    "RGBA": (with_alpha(Image.fromarray(RGB)), {}, ON_WHITE_RGB),
}  # fmt: skip
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def write_16_bit_png(path: Path, pixels: NDArray[np.integer]) -> None:
    """Write 16-bit RGB, (H, W, 3), which Pillow cannot."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def assert_read_everywhere(root: Path, name: str, expected: Pixels, max_pixels: int = 1_000) -> None:
    path = root / name
    metadata = inspect_image(path, max_pixels=max_pixels)
    assert (metadata.height_px, metadata.width_px, 3) == expected.shape
    row = {"uri": name, "image_id": image_id_from_sha256(files.sha256_file(path))}
    reader = ImageReader(root, [row])  # training gets a pickled copy in each of its processes, inference reads itself
    for read in (reader, pickle.loads(pickle.dumps(reader))):
        assert read(name).tobytes() == expected.tobytes()
    assert _to_rgb(path.read_bytes()).tobytes() == _to_rgb(str(path)).tobytes() == expected.tobytes()
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(expected)).save(stream, format="JPEG", quality=82, optimize=True)
    task = AnnotationTask(
        image_id=row["image_id"], uri=name, width_px=metadata.width_px, height_px=metadata.height_px, rank=1, reason="",
        uncertainty=0.5, predictions=(), model_digest="",
    )  # fmt: skip
    encoded = thumbnail(task, root, {}).data_uri.removeprefix("data:image/jpeg;base64,")
    assert base64.b64decode(encoded) == stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_png_of_every_mode_and_orientation(tmp_path: Path, mode: str, orientation: int) -> None:
    image, options, stored = MODES[mode]
    image.save(tmp_path / "a.png", exif=exif_block(orientation), **options)
    assert_read_everywhere(tmp_path, "a.png", UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiff_of_every_mode_and_orientation(tmp_path: Path, mode: str, orientation: int, compression: str) -> None:
    image, _, stored = MODES[mode]
    image.save(tmp_path / "a.tif", tiffinfo={0x0112: orientation}, compression=compression)
    assert_read_everywhere(tmp_path, "a.tif", UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_of_every_orientation(tmp_path: Path, mode: str, orientation: int) -> None:
    image, _, stored = MODES[mode]
    image.save(tmp_path / "a.webp", lossless=True, exact=True, exif=exif_block(orientation))
    assert_read_everywhere(tmp_path, "a.webp", UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_every_orientation(tmp_path: Path, mode: str, orientation: int) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / "stored.jpg")
    stored = np.asarray(Image.open(tmp_path / "stored.jpg").convert("RGB"))
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.jpg", exif=exif_block(orientation))
    assert_read_everywhere(tmp_path, "a.jpg", UPRIGHT[orientation](stored))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_of_every_mode(tmp_path: Path, mode: str) -> None:
    image, _, stored = MODES[mode]
    image.save(tmp_path / "a.bmp")
    assert_read_everywhere(tmp_path, "a.bmp", stored)


@pytest.mark.parametrize(
    "exif",
    [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF header", exif_block(6)[:20], exif_block(9)],
    ids=["empty", "header only", "offset outside", "not TIFF", "cut off", "no such orientation"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow looks for the resolution of a JPEG in it
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_broken_exif_leaves_the_pixels_as_stored(tmp_path: Path, exif: bytes, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"stored_{name}", lossless=True)
    Image.fromarray(RGB).save(tmp_path / name, exif=exif, lossless=True)
    assert_read_everywhere(tmp_path, name, np.asarray(Image.open(tmp_path / f"stored_{name}")))


def test_broken_tags_beside_the_orientation_do_not_stop_the_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera with a long name"
    block = exif.tobytes()[:-12]  # the name's text lies last and is cut off
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=block)
    assert_read_everywhere(tmp_path, "a.png", UPRIGHT[6](RGB))


def test_orientation_of_xmp_metadata_is_ignored(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=True, xmp=xmp)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.getexif()[0x0112] == 6  # what Pillow would apply
    assert_read_everywhere(tmp_path, "a.webp", RGB)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(tmp_path / "a.png")
    assert_read_everywhere(tmp_path, "a.png", np.full((2, 2, 3), (204, 224, 244), dtype=np.uint8))


def test_of_16_bit_color_the_upper_byte_is_kept(tmp_path: Path) -> None:
    write_16_bit_png(tmp_path / "a.png", np.array([[[0x12FF, 0x3400, 0xFFFF], [0x00FF, 0x8001, 0x7F80]]]))
    assert_read_everywhere(tmp_path, "a.png", np.array([[[0x12, 0x34, 0xFF], [0x00, 0x80, 0x7F]]], dtype=np.uint8))


def test_16_bit_ppm_is_scaled_to_8_bits(tmp_path: Path) -> None:
    deep = RGB[:1, :2].astype(">u2") * 257
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + deep.astype(">u2").tobytes())
    assert_read_everywhere(tmp_path, "a.ppm", RGB[:1, :2])


@pytest.mark.parametrize("name", ["a.gif", "a.pgm", "a.ppm"])
def test_lossless_formats_of_other_endings(tmp_path: Path, name: str) -> None:
    is_color = name.endswith(".ppm")
    Image.fromarray(RGB if is_color else GRAY).save(tmp_path / name)
    assert_read_everywhere(tmp_path, name, RGB if is_color else gray_as_rgb(GRAY))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.avif", "a.heic"])
def test_avif_and_heic_of_every_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    across, down = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))  # what lossy formats keep
    smooth = np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "plain", format=name[2:].upper().replace("HEIC", "HEIF"), quality=100)
    Image.fromarray(smooth).save(tmp_path / name, quality=100, exif=exif_block(orientation))
    plain = np.asarray(open_rgb(tmp_path / "plain"))
    assert np.abs(plain.astype(int) - smooth).mean() < 3
    found = np.asarray(open_rgb(tmp_path / name))
    assert found.shape == UPRIGHT[orientation](smooth).shape
    assert np.abs(found.astype(int) - UPRIGHT[orientation](smooth)).mean() < 3
    assert_read_everywhere(tmp_path, name, found, max_pixels=4_000)


def refuse_everywhere(root: Path, name: str, match: str) -> None:
    path = root / name
    reads: list[Callable[[], object]] = [
        lambda: inspect_image(path, max_pixels=1_000),
        lambda: open_rgb(path),
        lambda: _to_rgb(path.read_bytes()),
        lambda: ImageReader(root, [{"uri": name, "image_id": "a"}])(name),
        lambda: ImageSource(root).open(name, "a", open_rgb),
    ]
    for read in reads:
        with pytest.raises((ImageProblem, UserError), match=match):
            read()


@pytest.mark.parametrize(
    ("name", "pixels", "mode"),
    [
        ("a.png", np.full((4, 4), 40_000, dtype=np.uint16), r"I;16"),
        ("a.tif", np.full((4, 4), 40_000, dtype=np.uint16), r"I;16"),
        ("a.tif", np.full((4, 4), 0.5, dtype=np.float32), "F"),
        ("a.tif", np.full((4, 4), 70_000, dtype=np.int32), "I"),
    ],
)
def test_deep_gray_is_refused_by_its_mode(tmp_path: Path, name: str, pixels: NDArray[np.generic], mode: str) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    refuse_everywhere(tmp_path, name, f"the pixel mode is {mode}, expected 8 bits")


def test_mode_without_a_rule_is_refused_by_its_name(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    refuse_everywhere(tmp_path, "a.tif", "the pixel mode is LAB, expected one of 1, L,")
