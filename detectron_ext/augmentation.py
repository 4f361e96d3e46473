"""Weak and strong views of one image: same geometry, other colors.

Both views come from one explicit generator, so that a resumed run sees the same pixels.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class AugmentationConfig:
    """Size of the views and strength of their augmentation. Lengths in pixels, the rest in 0..1."""

    short_side_px: int
    long_side_px: int
    flip_probability: float = 0.0
    scale_jitter_frac: float = 0.0
    strong_magnitude: float = 1.0
    tile_side_px: int = 0
    """Of random tiles that large training images are cut into, in pixels of the original; 0: they are not."""
    tile_probability: float = 0.0
    """Of a tile in the place of the whole image."""


@dataclass(frozen=True)
class Example:
    """One image by its uri, with its labels in pixels of the original; none for an unlabeled image."""

    image_id: str
    uri: str
    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    class_ids: NDArray[np.int64]  # (N,) 0..K-1, or ignore_regions.CROWD_LABEL
    shape_class: int = 0
    """Of ``batch_order.shape_class``; images of one class share batches, without effect on the views."""


def resize(pixels: Pixels, config: AugmentationConfig, scale: float = 1.0) -> tuple[Pixels, float, float]:
    """Resize to the short side, times ``scale``, bounded by the long side; returns the factors for x and y."""
    height, width = pixels.shape[:2]
    factor = min(scale * config.short_side_px / min(height, width), scale * config.long_side_px / max(height, width))
    new_width, new_height = max(round(width * factor), 1), max(round(height * factor), 1)
    resized = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
    return np.asarray(resized), new_width / width, new_height / height


def weak_augment(
    pixels: Pixels, example: Example, config: AugmentationConfig, rng: np.random.Generator
) -> tuple[Pixels, NDArray[np.float32]]:
    """Apply scale jitter and horizontal flip; returns the pixels and the boxes (N, 4) in them."""
    scale = 1 + config.scale_jitter_frac * rng.uniform(-1, 1)
    flip = rng.random() < config.flip_probability
    resized, factor_x, factor_y = resize(pixels, config, scale)
    boxes = example.boxes_xyxy * np.array([factor_x, factor_y, factor_x, factor_y], dtype=np.float32)
    if flip:
        resized = np.ascontiguousarray(resized[:, ::-1])
        boxes = np.stack([resized.shape[1] - boxes[:, 2], boxes[:, 1], resized.shape[1] - boxes[:, 0], boxes[:, 3]], 1)
    return resized, boxes.astype(np.float32)


def strong_augment(pixels: Pixels, config: AugmentationConfig, rng: np.random.Generator) -> Pixels:
    """Apply Unbiased Teacher's list to a weak view: color jitter, gray, blur, up to three cutouts; boxes stay valid.

    ``config.strong_magnitude`` scales the range of the jitter and the probability of the rest
    (docs/method.md#strong-view).
    """
    jittered = change_colors(pixels, config, rng)
    for cutout in CUTOUTS:
        if rng.random() < cutout.probability * config.strong_magnitude:
            cutout.apply(jittered, rng)
    return jittered


def change_colors(pixels: Pixels, config: AugmentationConfig, rng: np.random.Generator) -> Pixels:
    """Apply the part of ``strong_augment`` that leaves every object where it is: color jitter, gray, blur."""
    magnitude = config.strong_magnitude
    image = Image.fromarray(pixels)
    if rng.random() < 0.8:
        image = _jitter_color(image, magnitude, rng)
    if rng.random() < 0.2 * magnitude:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.5 * magnitude:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return np.array(image)


def _jitter_color(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in an order drawn anew each time."""
    factors = 1 + 0.4 * magnitude * rng.uniform(-1, 1, 3)
    hue_shift = 0.1 * magnitude * rng.uniform(-1, 1)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for operation in rng.permutation(4):
        if operation < 3:
            image = enhancers[operation](image).enhance(float(factors[operation]))
        else:
            image = shift_hue(image, hue_shift)
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue of an RGB image by ``shift`` of the color circle, in [-0.5, 0.5]."""
    steps = round(shift * 256)
    if steps == 0:
        return image  # the way through HSV and back rounds
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(steps % 256))  # wraps around
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class Cutout:
    """A rectangle that is replaced by noise, at a random place."""

    probability: float
    area_frac: tuple[float, float]
    """Lowest and highest share of the image's area."""
    aspect: tuple[float, float]
    """Lowest and highest height over width; the logarithm is drawn uniformly."""

    def apply(self, pixels: Pixels, rng: np.random.Generator) -> None:
        """Change ``pixels`` (H, W, 3) in place; a side that is longer than the image is cut."""
        height, width = pixels.shape[:2]
        area = rng.uniform(*self.area_frac) * height * width
        aspect = math.exp(rng.uniform(*np.log(self.aspect)))
        cut_height, cut_width = min(int((area * aspect) ** 0.5), height), min(int((area / aspect) ** 0.5), width)
        top, left = rng.integers(0, height - cut_height + 1), rng.integers(0, width - cut_width + 1)
        pixels[top : top + cut_height, left : left + cut_width] = rng.integers(0, 256, (cut_height, cut_width, 3))


CUTOUTS = (
    Cutout(0.7, (0.05, 0.2), (0.3, 3.3)),
    Cutout(0.5, (0.02, 0.2), (0.1, 6.0)),
    Cutout(0.3, (0.02, 0.2), (0.05, 8.0)),
)
"""Those of Unbiased Teacher."""


def model_input(pixels: Pixels) -> dict[str, Any]:
    """Make Detectron2's input dict: ``image`` (3, H, W) uint8 RGB.

    Bytes, not floats: a quarter of the memory between processes and to the device.
    """
    return {"image": torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))}


def training_input(pixels: Pixels, boxes: NDArray[np.float32], example: Example) -> dict[str, Any]:
    """Make Detectron2's input dict with ``instances``; boxes in pixels of ``pixels``."""
    instances = Instances((pixels.shape[0], pixels.shape[1]))
    instances.gt_boxes = Boxes(torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4)))
    instances.gt_classes = torch.from_numpy(np.array(example.class_ids, dtype=np.int64))
    return {**model_input(pixels), "instances": instances}
