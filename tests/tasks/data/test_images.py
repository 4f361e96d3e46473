"""Opening untrusted image files."""

import contextlib
import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from tasks.data import image_decoding
from tasks.data.image_decoding import MAX_PIXELS, ImageProblem, open_rgb
from tasks.data.images import captured_hour, inspect_image
from tasks.params.stages import PrepareParams


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def noise_image(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8))


def test_facts_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    content = encode(noise_image())
    path.write_bytes(content)
    facts = inspect_image(path, max_pixels=10_000)
    assert (facts.width_px, facts.height_px, facts.size_bytes) == (40, 30, len(content))
    assert facts.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        ("PNG", ".png"), ("JPEG", ".jpg"), ("BMP", ".bmp"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("GIF", ".gif"),
        ("PPM", ".ppm"), ("AVIF", ".avif"), ("HEIF", ".heic"),
    ],
)  # fmt: skip
def test_suffix_says_what_is_inside_whatever_the_file_is_called(tmp_path: Path, format: str, suffix: str) -> None:
    path = tmp_path / "picture.jpeg"
    path.write_bytes(encode(noise_image(), format))
    assert inspect_image(path, max_pixels=10_000).suffix == suffix


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP", "AVIF"])
def test_of_several_pictures_the_first_is_read_and_all_are_counted(tmp_path: Path, format: str) -> None:
    black, white = Image.new("RGB", (40, 30)), Image.new("RGB", (40, 30), "white")
    path = tmp_path / "a"
    path.write_bytes(encode(black, format, save_all=True, append_images=[white, black]))
    assert inspect_image(path, max_pixels=10_000).num_frames == 3
    assert max(value for _, value in open_rgb(path).getextrema()) < 8


def test_heic_without_its_library_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(noise_image(), "HEIF"))
    monkeypatch.setattr(image_decoding, "_register_heif", lambda: False)
    with pytest.raises(ImageProblem, match=r"the format is HEIC, expected pillow-heif.*gleaner\[heic\]"):
        inspect_image(path, max_pixels=10_000)
    path.write_bytes(encode(noise_image(), "AVIF"))
    assert inspect_image(path, max_pixels=10_000).suffix == ".avif"


def test_avif_whose_first_brand_is_the_general_one_is_no_heic(tmp_path: Path) -> None:
    content = encode(noise_image(), "AVIF")
    assert content[8:12] == b"avif"
    path = tmp_path / "a.avif"
    path.write_bytes(content[:8] + b"mif1" + content[12:])
    assert inspect_image(path, max_pixels=10_000).suffix == ".avif"


def test_phone_jpeg_with_a_second_picture_is_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(noise_image(), "MPO", save_all=True, append_images=[noise_image(20, 10)]))
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert inspect_image(path, max_pixels=10_000).suffix == ".jpg"


def test_sideways_photo_is_measured_and_read_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(encode(noise_image(40, 30), "JPEG", exif=exif))
    facts = inspect_image(path, max_pixels=10_000)
    assert (facts.width_px, facts.height_px) == (30, 40) == open_rgb(path).size


def huge_png(side: int) -> bytes:
    """The first bytes of a PNG that promises ``side`` squared pixels."""
    ihdr = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    start = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + ihdr + zlib.crc32(ihdr).to_bytes(4, "big")
    return start + (1000).to_bytes(4, "big") + b"IDAT"


@pytest.mark.parametrize(
    ("taken_at", "hour"),
    [("2026:11:30 17:05:59", 17), ("2026:11:30 00:00:00\0", 0), ("    :  :     :  :  ", None), (None, None)],
)
def test_the_hour_is_the_camera_s(tmp_path: Path, taken_at: str | None, hour: int | None) -> None:
    exif = Image.Exif()
    if taken_at is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken_at
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert captured_hour(tmp_path / "a.jpg") == hour


def test_broken_exif_tells_no_hour(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert captured_hour(tmp_path / "a.png") is None


@pytest.mark.parametrize("side", [2_000, 20_000])
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(side))
    with pytest.raises(ImageProblem, match=f"{side * side} pixels"):
        inspect_image(path, max_pixels=1_000_000)


def test_more_pixels_than_any_limit_allows_are_refused_by_all_readers(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(40_000))
    with pytest.raises(ImageProblem, match=f"more than {MAX_PIXELS} pixels, expected at most 1000000"):
        inspect_image(path, max_pixels=1_000_000)
    with pytest.raises(ImageProblem, match=f"more than {MAX_PIXELS} pixels"):
        open_rgb(path)


def test_prepare_accepts_no_image_that_later_stages_refuse() -> None:
    bounds = PrepareParams.model_fields["max_pixels"].metadata
    assert [bound.le for bound in bounds if hasattr(bound, "le")] == [MAX_PIXELS]


def test_deep_pixels_are_refused_because_rgb_would_saturate_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16))))
    with pytest.raises(ImageProblem, match="8 bits"):
        inspect_image(path, max_pixels=10_000)


def test_missing_folder_and_fifo_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "fifo.png", "folder.png"):
        with pytest.raises(ImageProblem, match="missing"):
            inspect_image(tmp_path / name, max_pixels=10_000)


def test_reason_holds_no_local_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ImageProblem) as caught:
        inspect_image(path, max_pixels=10_000)
    assert str(tmp_path) not in str(caught.value)


@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "TIFF"]))
def test_damaged_files_end_in_facts_or_a_named_problem(
    data: st.DataObject, format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(encode(noise_image(16, 12), format))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.img"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(ImageProblem):
        facts = inspect_image(path, max_pixels=10_000)
        assert facts.width_px * facts.height_px <= 10_000


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_half_a_file_is_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a.img"
    content = encode(noise_image(), format)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageProblem, match=r"unreadable \(.+\), expected a whole image"):
        inspect_image(path, max_pixels=10_000)
