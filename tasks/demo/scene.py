"""One picture: a crop of a photograph, clutter, and digits with their boxes."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.demo.digits import Overlay, blend, clutter_mask, digit_mask
from tasks.demo.plan import Difficulty, SceneSpec
from tasks.demo.sources import EASY_BACKGROUNDS, HARD_BACKGROUNDS, Floats, SourceImages

_SIZES_PX = ((320, 240), (288, 216), (256, 192), (240, 180), (320, 200), (224, 160))
_MAX_PLACEMENTS = 60


@dataclass(frozen=True)
class SceneStyle:
    """How pictures of one kind look."""

    photos: tuple[str, ...]
    heights_px: tuple[int, int]
    """Digits, before tilting."""
    contrast: tuple[float, float]
    clutter: tuple[int, int]
    """Number of pieces."""
    max_overlap_frac: float
    """Of any digit's box, by one other box."""
    tilt_deg: float


_STYLES = {
    Difficulty.EASY: SceneStyle(EASY_BACKGROUNDS, (48, 80), (0.85, 1.0), (0, 0), 0.0, 6),
    Difficulty.MEDIUM: SceneStyle((*EASY_BACKGROUNDS, *HARD_BACKGROUNDS), (34, 72), (0.65, 0.95), (0, 2), 0.10, 12),
    Difficulty.HARD: SceneStyle(HARD_BACKGROUNDS, (26, 56), (0.45, 0.75), (2, 4), 0.30, 18),
    Difficulty.EMPTY: SceneStyle((*EASY_BACKGROUNDS, *HARD_BACKGROUNDS), (0, 0), (0.0, 0.0), (0, 4), 0.0, 0),
}
_CLUTTER_PX = (20, 56)
_CLUTTER_CONTRAST = (0.4, 0.9)
_NUM_EASY_CROPS = 2  # few backgrounds for the easy pictures, so that they are redundant


@dataclass(frozen=True)
class Scene:
    """A drawn picture and the truth about it."""

    image: Image.Image
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]
    """Class name and x1, y1, x2, y2 in px."""


def render_scene(spec: SceneSpec, sources: SourceImages, rng: np.random.Generator) -> Scene:
    """Draw what the page says; a digit that finds no room is drawn smaller."""
    style = _STYLES[spec.difficulty]
    width, height = _SIZES_PX[int(rng.integers(len(_SIZES_PX)))]
    if rng.random() < 0.5:
        width, height = height, width
    canvas = _background(style, spec.difficulty, sources, (width, height), rng)
    overlays = _place_digits(spec, style, sources, (width, height), rng)
    for _ in range(int(rng.integers(*style.clutter, endpoint=True))):
        mask = clutter_mask(int(rng.integers(*_CLUTTER_PX, endpoint=True)), rng)
        clutter = _place_mask(mask, [digit for _, digit in overlays], 0.15, (width, height), rng)
        if clutter is not None:
            blend(canvas, clutter, rng.uniform(*_CLUTTER_CONTRAST), rng)
    for _, digit in overlays:
        blend(canvas, digit, rng.uniform(*style.contrast), rng)
    image = Image.fromarray(np.clip(np.round(canvas), 0, 255).astype(np.uint8))
    return Scene(image, tuple((name, digit.box) for name, digit in overlays))


def _background(
    style: SceneStyle, difficulty: Difficulty, sources: SourceImages, size_px: tuple[int, int], rng: np.random.Generator
) -> Floats:
    photo = sources.photos[style.photos[int(rng.integers(len(style.photos)))]]
    width, height = size_px
    zoom = min(rng.uniform(1.0, 1.6), photo.width / width, photo.height / height)
    crop_width, crop_height = int(width * zoom), int(height * zoom)
    position = (
        rng.random(2) if difficulty is not Difficulty.EASY else rng.integers(_NUM_EASY_CROPS, size=2) * 0.5 + 0.25
    )
    left, top = int(position[0] * (photo.width - crop_width)), int(position[1] * (photo.height - crop_height))
    crop = photo.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64).copy()


def _place_digits(
    spec: SceneSpec, style: SceneStyle, sources: SourceImages, size_px: tuple[int, int], rng: np.random.Generator
) -> list[tuple[str, Overlay]]:
    overlays: list[tuple[str, Overlay]] = []
    for name in spec.classes:
        samples = sources.digits[name]
        ink = samples[int(rng.integers(len(samples)))]
        low, high = style.heights_px
        overlay, overlap_frac = None, style.max_overlap_frac
        while overlay is None:
            mask = digit_mask(ink, int(rng.integers(low, high, endpoint=True)), rng, max_tilt_deg=style.tilt_deg)
            overlay = _place_mask(mask, [digit for _, digit in overlays], overlap_frac, size_px, rng)
            high = max(low, high - 8)  # a crowded picture: try smaller ones
            low = max(16, low - 1)
            overlap_frac += 0.02  # and let them touch, so that this ends
        overlays.append((name, overlay))
    return overlays


def _place_mask(
    mask: Floats,
    others: list[Overlay],
    max_overlap_frac: float,
    size_px: tuple[int, int],
    rng: np.random.Generator,
) -> Overlay | None:
    """A random place inside the picture where no box covers more than ``max_overlap_frac`` of another."""
    height, width = mask.shape
    for _ in range(_MAX_PLACEMENTS):
        left = int(rng.integers(0, size_px[0] - width, endpoint=True))
        top = int(rng.integers(0, size_px[1] - height, endpoint=True))
        overlay = Overlay(mask, left, top)
        if all(_overlap_frac(overlay.box, other.box) <= max_overlap_frac for other in others):
            return overlay
    return None


def _overlap_frac(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Common area as a fraction of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
