"""Two views of an image without labels, and the regions that both show (docs/method.md#pretraining).

The two views are random parts of the image with colors of their own. Where a region lies in either of them is known
from how they were cut, so the network can be asked to see the same in both. Regions, not whole images, are compared:
a picture with many objects has no single meaning, and few images a step give many regions.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from detectron_ext.augmentation import AugmentationConfig, Example, Pixels, change_colors, model_input, resize
from detectron_ext.data import BatchOrder, ReadImage, read_ahead, read_view

REGIONS_PER_IMAGE = 16
MIN_VIEW_SIDE_FRAC = 0.6
"""Of the image's side. Over one half, so that any two views of an image have a part in common."""
REGION_SIDE_FRAC = (1 / 8, 1 / 2)
"""Shortest and longest side of a region, as a share of the image's side; the logarithm is drawn uniformly."""
_ORDER_STREAM, _VIEW_STREAM = 6, 7


@dataclass(frozen=True)
class ViewWindow:
    """Which part of an image a view shows, and how; lengths in pixels of the image."""

    left: int
    top: int
    width: int
    height: int
    is_flipped: bool

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """Corners, (4,)."""
        return np.array([self.left, self.top, self.left + self.width, self.top + self.height], dtype=np.float64)

    def place(self, boxes_xyxy: NDArray[np.float64], factor_x: float, factor_y: float) -> NDArray[np.float32]:
        """Return where boxes of the image (R, 4) lie in the view, which was resized by the two factors."""
        factors = np.array([factor_x, factor_y, factor_x, factor_y])
        boxes = (boxes_xyxy - np.array([self.left, self.top, self.left, self.top])) * factors
        if self.is_flipped:
            right = self.width * factor_x
            boxes = np.stack([right - boxes[:, 2], boxes[:, 1], right - boxes[:, 0], boxes[:, 3]], axis=1)
        return boxes.astype(np.float32)


def draw_window(size_px: tuple[int, int], flip_probability: float, rng: np.random.Generator) -> ViewWindow:
    """Draw a part of an image (height, width) with its aspect ratio."""
    height, width = size_px
    side_frac = rng.uniform(MIN_VIEW_SIDE_FRAC, 1)
    view_height, view_width = math.ceil(side_frac * height), math.ceil(side_frac * width)
    top, left = (int(rng.integers(0, gap + 1)) for gap in (height - view_height, width - view_width))
    return ViewWindow(left, top, view_width, view_height, bool(rng.random() < flip_probability))


def draw_regions(
    size_px: tuple[int, int], first: ViewWindow, second: ViewWindow, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw boxes that lie in both windows of an image (height, width), in pixels of the image, (R, 4)."""
    height, width = size_px
    low = np.maximum(first.xyxy[:2], second.xyxy[:2])
    common = np.minimum(first.xyxy[2:], second.xyxy[2:]) - low
    shortest, longest = REGION_SIDE_FRAC
    fractions = np.exp(rng.uniform(math.log(shortest), math.log(longest), (REGIONS_PER_IMAGE, 2)))
    sides = np.minimum(fractions * np.array([width, height]), common)
    corners = low + rng.random((REGIONS_PER_IMAGE, 2)) * (common - sides)
    return np.concatenate([corners, corners + sides], axis=1)


@dataclass(frozen=True)
class PretrainingBatch:
    """The views of one step in one process, as Detectron2 inputs with ``regions`` (R, 4) in pixels of the view.

    Entry i of both lists is of the same image, and region r of both is the same place.
    """

    first: list[dict[str, Any]]
    second: list[dict[str, Any]]

    def pin_memory(self) -> "PretrainingBatch":
        """Return the batch with its pixels in page-locked memory, from where a GPU copies without waiting."""
        first, second = (
            [{**view, "image": view["image"].pin_memory()} for view in views] for views in (self.first, self.second)
        )
        return PretrainingBatch(first, second)


class PretrainingBatches(Dataset[PretrainingBatch]):
    """Item i is the batch of iteration i, as a pure function of seed and iteration."""

    def __init__(
        self,
        images: Sequence[Example],
        read_image: ReadImage,
        augmentation: AugmentationConfig,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            images: at least one; labels are not looked at.
            read_image: gives the RGB pixels of an uri.
            augmentation: size and strength of the views.
            batch_size: images per iteration, over all processes.
            seed: of order and views.
            rank: number of this process; it makes its share of every batch.
            world_size: processes that train as one.

        Raises:
            ValueError: a batch that does not divide evenly among the processes.
        """
        if batch_size % world_size:
            raise ValueError(f"images per step are {batch_size}, expected a multiple of the {world_size} devices")
        self._images, self._read_image, self._augmentation = images, read_image, augmentation
        self._seed, self._slots = seed, range(rank, batch_size, world_size)
        self._order = BatchOrder([image.shape_class for image in images], batch_size, seed, _ORDER_STREAM)

    def __getitem__(self, iteration: int) -> PretrainingBatch:
        """Return the batch of one iteration."""
        items = self._order.batch(iteration)
        pairs = [
            self._views(self._images[items[slot]], np.random.default_rng([self._seed, _VIEW_STREAM, iteration, slot]))
            for slot in self._slots
        ]
        return PretrainingBatch([first for first, _ in pairs], [second for _, second in pairs])

    def _views(self, image: Example, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        pixels, _ = read_view(self._read_image, image, self._augmentation, rng)
        size_px = pixels.shape[0], pixels.shape[1]
        first, second = (draw_window(size_px, self._augmentation.flip_probability, rng) for _ in range(2))
        regions = draw_regions(size_px, first, second, rng)
        return self._view(pixels, first, regions, rng), self._view(pixels, second, regions, rng)

    def _view(
        self, pixels: Pixels, window: ViewWindow, regions: NDArray[np.float64], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Cut, resize and recolor one view. Nothing is cut out of it: what is not there cannot be recognized."""
        part = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
        resized, factor_x, factor_y = resize(np.ascontiguousarray(part), self._augmentation)
        if window.is_flipped:
            resized = np.ascontiguousarray(resized[:, ::-1])
        view = model_input(change_colors(resized, self._augmentation, rng))
        return {**view, "regions": torch.from_numpy(window.place(regions, factor_x, factor_y))}

    def iterate(self, start: int, stop: int, num_workers: int) -> Generator[PretrainingBatch]:
        """Yield the batches of iterations ``start`` to ``stop - 1``; close it where the loop may end early."""
        return read_ahead(self, start, stop, num_workers)
