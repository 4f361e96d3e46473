"""One thing on a picture: a digit or a piece of clutter as a mask, colored and blended in."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tasks.demo.sources import Floats

_INK_EDGE = (0.38, 0.68)  # ink below is paper, above is stroke; between them the stroke's soft edge
_BOX_THRESHOLD = 0.35  # opacity from which a pixel belongs to the digit's box
_SUPERSAMPLING = 4
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Overlay:
    """Opacity of one thing, and where it goes."""

    mask: Floats
    """Shape (height, width) in px, opacity in [0, 1], cut tight around the strokes."""
    left_px: int
    top_px: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in px."""
        height, width = self.mask.shape
        return self.left_px, self.top_px, self.left_px + width, self.top_px + height


def digit_mask(ink: Floats, height_px: int, rng: np.random.Generator, *, max_tilt_deg: float) -> Floats:
    """A handwritten 8 x 8 sample as smooth strokes of about ``height_px``, tilted and cut tight."""
    padded = np.pad(ink, 2)
    side = round(height_px * padded.shape[0] / ink.shape[0])
    width = max(4, round(side * rng.uniform(0.75, 1.0)))
    image = Image.fromarray((padded * 255).astype(np.uint8)).resize((width, side), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-max_tilt_deg, max_tilt_deg), Image.Resampling.BICUBIC, expand=True)
    image = image.filter(ImageFilter.GaussianBlur(side / 40))
    low, high = _INK_EDGE
    return _crop_to_mask(np.clip((np.asarray(image, dtype=np.float64) / 255 - low) / (high - low), 0, 1))


def clutter_mask(size_px: int, rng: np.random.Generator) -> Floats:
    """A straight-edged figure that is no digit: cross, triangle, square, star, or parallel bars."""
    side = size_px * _SUPERSAMPLING
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    for polygon in _CLUTTER[int(rng.integers(len(_CLUTTER)))]:
        draw.polygon([(x * side, y * side) for x, y in polygon], fill=255)
    image = image.rotate(rng.uniform(0, 90), Image.Resampling.BICUBIC, expand=True)
    image = image.resize((image.width // _SUPERSAMPLING, image.height // _SUPERSAMPLING), Image.Resampling.BOX)
    return _crop_to_mask(np.asarray(image, dtype=np.float64) / 255)


def _star() -> tuple[tuple[float, float], ...]:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.2)
    return tuple((float(0.5 + r * np.cos(a)), float(0.5 + r * np.sin(a))) for a, r in zip(angles, radii, strict=True))


_CLUTTER: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0.38, 0), (0.62, 0), (0.62, 1), (0.38, 1)), ((0, 0.38), (1, 0.38), (1, 0.62), (0, 0.62))),  # cross
    (((0.5, 0.05), (1, 0.95), (0, 0.95)),),  # triangle
    (((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)),),  # square
    (_star(),),
    tuple(((x, 0.0), (x + 0.16, 0.0), (x + 0.16, 1.0), (x, 1.0)) for x in (0.0, 0.28, 0.56, 0.84)),  # bars
)


def _crop_to_mask(mask: Floats) -> Floats:
    rows = np.flatnonzero((mask >= _BOX_THRESHOLD).any(axis=1))
    columns = np.flatnonzero((mask >= _BOX_THRESHOLD).any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def blend(canvas: Floats, overlay: Overlay, contrast: float, rng: np.random.Generator) -> None:
    """Paint the stamp on ``canvas`` in place.

    Args:
        canvas: shape (height, width, 3), levels in [0, 255].
        overlay: lies inside the canvas.
        contrast: distance of its brightness from what is behind it, as a fraction of the larger way there is,
            to black or to white.
        rng: draws the hue.
    """
    x1, y1, x2, y2 = overlay.box
    background = canvas[y1:y2, x1:x2]
    level = float((background.mean(axis=(0, 1)) * _LUMA).sum())
    target = level + contrast * (255 - level if level < 128 else -level)
    hue = rng.uniform(-1, 1, size=3)
    hue -= (hue * _LUMA).sum()  # color without brightness: the luma weights sum to 1
    color = np.clip(target + 60 * contrast * hue, 0, 255)
    opacity = overlay.mask[..., None] * 0.95
    canvas[y1:y2, x1:x2] = background * (1 - opacity) + color * opacity
