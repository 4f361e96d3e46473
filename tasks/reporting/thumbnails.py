"""Make thumbnails of images, with their pre-drawn boxes, and of parts of images."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tasks.data.image_decoding import open_rgb
from tasks.data.images import ImageSource
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.runtime.errors import UserError

_LONG_SIDE_PX = 400
_MAP_COLOR = (213, 94, 0)
"""Of full activation over a picture: the palette's vermillion."""
_MAP_OPACITY = 0.75
_JPEG_QUALITY, _SMALL_QUALITY = 82, 70
_CROP_LONG_SIDE_PX = 110
_CROP_MARGIN_FRAC = 0.35
"""Of the longer side of the box, on each side."""
_CROP_OUTLINE = (255, 80, 60)
_NUM_BOX_COLORS = 7
"""Number of --box-… variables in style.css.j2; classes beyond it take colors in turn."""
_MAX_LABELED_BOXES = 6
"""Names are written into the picture up to this many boxes; more would hide what they name."""


@dataclass(frozen=True)
class ThumbnailBox:
    """One box in pixels of the thumbnail."""

    x: float
    y: float
    width: float
    height: float
    color: int
    text: str
    """Class and score; empty where there is no room for it."""
    text_x: float
    text_y: float
    anchor: str
    """``end`` where a text that starts at the box's left side would leave the picture."""


@dataclass(frozen=True)
class PredictedClass:
    """The predictions of one class in one image."""

    name: str
    color: int
    scores: str


@dataclass(frozen=True)
class Thumbnail:
    """One selected image as the page shows it."""

    data_uri: str
    """JPEG as a data URI; empty where the image cannot be opened here."""
    width_px: int
    height_px: int
    text_px: float
    boxes: Sequence[ThumbnailBox]
    predicted_classes: Sequence[PredictedClass]


def thumbnail(task: AnnotationTask, root: Path, class_color: Mapping[str, int]) -> Thumbnail:
    """Draw one task; an image that is not here or unreadable gives an empty picture."""
    scale = min(1.0, _LONG_SIDE_PX / max(task.width_px, task.height_px))
    size = (max(1, round(task.width_px * scale)), max(1, round(task.height_px * scale)))
    text_px = max(size) / 24  # the page shows all thumbnails equally wide
    is_labeled = len(task.predictions) <= _MAX_LABELED_BOXES
    boxes = [
        _thumbnail_box(prediction, scale, size, text_px if is_labeled else 0.0, class_color.get(prediction.category, 0))
        for prediction in task.predictions
    ]
    return Thumbnail(
        _encode_jpeg(task, root, size), *size, text_px, boxes, _predicted_classes(task.predictions, class_color)
    )


def map_thumbnail(
    uri: str, image_id: str, root: Path, size_px: tuple[int, int], percent_HW: Sequence[Sequence[int]]
) -> tuple[str, tuple[int, int]]:
    """Draw a map over a gray picture; an image that is not here or unreadable gives an empty one.

    Args:
        uri: of the image.
        image_id: of the image.
        root: folder that uris are relative to.
        size_px: width and height of the image.
        percent_HW: rows of the map, 0 to 100.

    Returns:
        A JPEG as a data URI, and its width and height.
    """
    scale = min(1.0, _LONG_SIDE_PX / max(size_px))
    size = (max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale)))
    opacity = Image.fromarray((np.array(percent_HW) * (_MAP_OPACITY * 2.55)).astype(np.uint8))

    def draw(path: Path) -> Image.Image:
        gray = open_rgb(path).resize(size, Image.Resampling.LANCZOS).convert("L").convert("RGB")
        return Image.composite(
            Image.new("RGB", size, _MAP_COLOR), gray, opacity.resize(size, Image.Resampling.BILINEAR)
        )

    return _data_uri(uri, image_id, root, draw, _JPEG_QUALITY), size


def class_colors(classes: Sequence[str]) -> dict[str, int]:
    """Return the number of a color for every class, 0 to 6."""
    return {name: index % _NUM_BOX_COLORS for index, name in enumerate(classes)}


def small_jpeg(uri: str, image_id: str, root: Path, side_px: int) -> str:
    """Return an image, shrunk to fit a square, as a data URI; empty where it cannot be opened here."""

    def shrink(path: Path) -> Image.Image:
        image = open_rgb(path)
        image.thumbnail((side_px, side_px))
        return image

    return _data_uri(uri, image_id, root, shrink, _SMALL_QUALITY)


def crop_jpeg(uri: str, image_id: str, root: Path, box_xyxy: Sequence[float]) -> str:
    """Return what is in and around a box, with the box drawn, as a data URI; empty where it cannot be opened here."""

    def cut(path: Path) -> Image.Image:
        image = open_rgb(path)
        x1, y1, x2, y2 = box_xyxy
        margin = _CROP_MARGIN_FRAC * max(x2 - x1, y2 - y1) + 1
        left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
        part = image.crop((left, top, min(image.width, int(x2 + margin) + 1), min(image.height, int(y2 + margin) + 1)))
        scale = _CROP_LONG_SIDE_PX / max(part.size)
        shown = part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))))
        corners = ((x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale)
        ImageDraw.Draw(shown).rectangle(corners, outline=_CROP_OUTLINE, width=2)
        return shown

    return _data_uri(uri, image_id, root, cut, _SMALL_QUALITY)


def _encode_jpeg(task: AnnotationTask, root: Path, size: tuple[int, int]) -> str:
    def shrink(path: Path) -> Image.Image:
        return open_rgb(path).resize(size, Image.Resampling.LANCZOS)

    return _data_uri(task.uri, task.image_id, root, shrink, _JPEG_QUALITY)


def _data_uri(uri: str, image_id: str, root: Path, shrink: Callable[[Path], Image.Image], quality: int) -> str:
    try:
        small = ImageSource(root).open(uri, image_id, shrink)
    except (UserError, OSError, ValueError, SyntaxError):
        return ""  # not checked out, or the object store is away: the page says so
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _thumbnail_box(
    prediction: Prediction, scale: float, size: tuple[int, int], text_px: float, color: int
) -> ThumbnailBox:
    x1, y1, x2, y2 = (corner * scale for corner in prediction.xyxy_px)
    text = f"{prediction.category} {prediction.score:.2f}" if text_px else ""
    overflows = x1 + 0.6 * text_px * len(text) > size[0]
    above = y1 > 1.6 * text_px
    return ThumbnailBox(
        x=x1,
        y=y1,
        width=max(0.0, x2 - x1),
        height=max(0.0, y2 - y1),
        color=color,
        text=text,
        text_x=min(x2, size[0]) if overflows else x1,
        text_y=y1 - 0.4 * text_px if above else y1 + 1.2 * text_px,
        anchor="end" if overflows else "start",
    )


def _predicted_classes(predictions: Sequence[Prediction], class_color: Mapping[str, int]) -> list[PredictedClass]:
    """Return the classes by falling best score."""
    scores: dict[str, list[float]] = {}
    for prediction in predictions:
        scores.setdefault(prediction.category, []).append(prediction.score)
    ranked = sorted(scores.items(), key=lambda item: (-max(item[1]), item[0]))
    return [PredictedClass(name, class_color.get(name, 0), _score_range(found)) for name, found in ranked]


def _score_range(scores: Sequence[float]) -> str:
    if len(scores) == 1:
        return f"{scores[0]:.2f}"
    return f"× {len(scores)}, {min(scores):.2f} to {max(scores):.2f}"
