"""Thumbnails: boxes land where they belong, and no image can stop the page."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tasks.data.schemas import AnnotationTask, Prediction
from tasks.reporting.thumbnails import class_colors, thumbnail


def make_task(
    width_px: int, height_px: int, *boxes: tuple[str, float, tuple], uri: str = "data/images/a.png"
) -> AnnotationTask:
    predictions = tuple(Prediction(category=name, score=score, xyxy_px=xyxy) for name, score, xyxy in boxes)
    return AnnotationTask(
        image_id="a", uri=uri, width_px=width_px, height_px=height_px, rank=1, reason="", uncertainty=0.5,
        predictions=predictions, model_digest="",
    )  # fmt: skip


def save_image(root: Path, image: Image.Image, **options: object) -> None:
    (root / "data/images").mkdir(parents=True, exist_ok=True)
    image.save(root / "data/images/a.png", **options)


def decode(data_uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_uri.removeprefix("data:image/jpeg;base64,"))))


def test_box_and_picture_are_scaled_alike(tmp_path):
    image = Image.new("RGB", (800, 600), "black")
    image.paste("white", (400, 300, 600, 450))
    save_image(tmp_path, image)
    drawn = thumbnail(make_task(800, 600, ("a", 0.9, (400, 300, 600, 450))), tmp_path, {"a": 0})
    box = drawn.boxes[0]
    assert (box.x, box.y, box.width, box.height) == (200, 150, 100, 75)
    picture = decode(drawn.data_uri).convert("L")
    assert picture.size == (drawn.width_px, drawn.height_px) == (400, 300)
    assert picture.getpixel((box.x + 50, box.y + 40)) > 240
    assert picture.getpixel((box.x - 8, box.y - 8)) < 16


def test_small_picture_is_not_enlarged(tmp_path):
    save_image(tmp_path, Image.new("RGB", (64, 48)))
    drawn = thumbnail(make_task(64, 48), tmp_path, {})
    assert (drawn.width_px, drawn.height_px) == (64, 48)


def test_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: shown after a quarter turn clockwise
    save_image(tmp_path, image, exif=exif)
    picture = decode(thumbnail(make_task(20, 40), tmp_path, {}).data_uri).convert("L")
    assert picture.size == (20, 40)
    assert picture.getpixel((10, 5)) > 240
    assert picture.getpixel((10, 35)) < 16


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA"])
def test_every_pixel_mode_becomes_a_jpeg(tmp_path, mode):
    image = Image.new("RGB", (30, 30), "red").convert(mode)
    (tmp_path / "data/images").mkdir(parents=True)
    uri = "data/images/a.tif"
    image.save(tmp_path / uri)
    assert decode(thumbnail(make_task(30, 30, uri=uri), tmp_path, {}).data_uri).size == (30, 30)


@pytest.mark.parametrize("uri", ["s3://bucket/a.png", "data/images/none.png", "../outside.png", "/etc/passwd", "a.txt"])
def test_image_that_cannot_be_shown_leaves_its_place_empty(tmp_path, uri):
    (tmp_path / "a.txt").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path.parent / "outside.png")
    assert thumbnail(make_task(30, 30, uri=uri), tmp_path, {}).data_uri == ""


def test_names_are_written_in_while_there_is_room(tmp_path):
    few = [("a", 0.9, (i, 20, i + 9, 40)) for i in range(6)]
    assert all(box.text == "a 0.90" for box in thumbnail(make_task(100, 100, *few), tmp_path, {}).boxes)
    assert all(box.text == "" for box in thumbnail(make_task(100, 100, *few, few[0]), tmp_path, {}).boxes)


def test_name_at_the_right_edge_is_set_to_the_left(tmp_path):
    box = thumbnail(make_task(100, 100, ("a long class name", 0.9, (80, 1, 99, 40))), tmp_path, {}).boxes[0]
    assert (box.anchor, box.text_x) == ("end", 99)
    assert box.text_y > box.y  # no room above


def test_classes_seen_are_listed_by_best_score(tmp_path):
    boxes = [("b", 0.4, (0, 0, 9, 9)), ("a", 0.6, (0, 0, 9, 9)), ("b", 0.8, (0, 0, 9, 9))]
    seen = thumbnail(make_task(100, 100, *boxes), tmp_path, {"a": 0, "b": 1}).predicted_classes
    assert [(entry.name, entry.color, entry.scores) for entry in seen] == [
        ("b", 1, "× 2, 0.40 to 0.80"),
        ("a", 0, "0.60"),
    ]


def test_many_classes_share_the_colors():
    assert set(class_colors([str(i) for i in range(80)]).values()) == set(range(7))
