"""The real pixels: photographs and handwritten digits, from installed packages, never from a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks.runtime.errors import UserError

Floats = npt.NDArray[np.float64]
Split = Literal["pool", "val"]

DIGITS_BY_NAME = {
    name: digit
    for digit, name in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}
"""Class names that can be drawn."""

EASY_BACKGROUNDS = ("flower.jpg", "moon.png", "retina.jpg")
"""Smooth photographs, on which a digit stands out."""
HARD_BACKGROUNDS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""Photographs full of edges."""

_SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")
_VAL_FRAC = 0.25
_DIGIT_LEVELS = 16.0  # load_digits counts ink in 0..16


@dataclass(frozen=True)
class SourceImages:
    """Pixels to draw with."""

    photos: dict[str, Image.Image]
    """RGB, by file name."""
    digits: dict[str, list[Floats]]
    """Ink in [0, 1], shape (8, 8), by class name."""


def read_photos() -> dict[str, Image.Image]:
    """All photographs as RGB."""
    photos = {}
    for name in (*EASY_BACKGROUNDS, *HARD_BACKGROUNDS):
        package = "sklearn.datasets.images" if name in _SKLEARN_PHOTOS else "skimage.data"
        with resources.files(package).joinpath(name).open("rb") as stream, Image.open(stream) as photo:
            photos[name] = photo.convert("RGB")
    return photos


def read_digits(classes: Sequence[str], split: Split) -> dict[str, list[Floats]]:
    """Handwritten samples of each class.

    The last quarter of the samples of a digit is kept for validation. scikit-learn holds them writer after
    writer, so validation mostly shows hands that the pool does not.

    Raises:
        UserError: a class that is no digit's name.
    """
    from sklearn.datasets import load_digits  # a second to import, so only where something is drawn

    unknown = [name for name in classes if name not in DIGITS_BY_NAME]
    if unknown:
        problem = f"classes has {unknown[0]!r}, expected names of digits: {', '.join(DIGITS_BY_NAME)}"
        raise UserError("params.yaml", problem, "The demo can draw digits only.")
    samples = load_digits()
    digits = {}
    for name in classes:
        inks = samples.images[samples.target == DIGITS_BY_NAME[name]] / _DIGIT_LEVELS
        split_index = round(len(inks) * (1 - _VAL_FRAC))
        digits[name] = list(inks[:split_index] if split == "pool" else inks[split_index:])
    return digits
