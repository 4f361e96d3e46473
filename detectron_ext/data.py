"""Batches as a pure function of seed and iteration: a resumed run needs no sampler state.

The images of a batch are padded to one shape. Landscape and portrait together would be computed on up to twice the
pixels. So a batch has images of one shape class where possible, and still every image comes once per pass.
"""

import math
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from detectron_ext.augmentation import (
    AugmentationConfig,
    Example,
    Pixels,
    model_input,
    strong_augment,
    training_input,
    weak_augment,
)
from detectron_ext.copy_paste import ObjectPatch, RareObjectSampler, cut_out
from detectron_ext.tiles import random_tile, tile_with_object

Ints = NDArray[np.int64]
_Batch = TypeVar("_Batch")

_NUM_CACHED_PASSES = 16
_BLOCK_BATCHES = 64


def shape_class(width_px: int, height_px: int) -> int:
    """Classify an aspect ratio on a scale with steps of the square root of 2: 0 square, +1 4:3 or 3:2, -1 upright.

    Returns:
        In -2..2.
    """
    return min(max(round(2 * math.log2(width_px / height_px)), -2), 2)


class BatchOrder:
    """Endless passes over some items, each pass in an order of its own, cut into batches.

    A pass need not be a multiple of the batch: the batch at its end has the first items of the next pass. With
    weights, a pass has 64 batches of independent draws.
    """

    def __init__(
        self,
        shape_classes: Sequence[int],
        batch_size: int,
        seed: int,
        stream: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Begin at position 0.

        Args:
            shape_classes: of each item; items of one class share batches.
            batch_size: items per batch, >= 1.
            seed: of the order.
            stream: gives several orders of one seed.
            weights: one for each item, >= 0 and not all 0; items are drawn with replacement in proportion to them.
                None: every item once per pass.
        """
        self._class_of = np.asarray(shape_classes, dtype=np.int64)
        self.batch_size = batch_size
        self._seed, self._stream = seed, stream
        self._cumulative = None if weights is None else np.cumsum(weights)
        self.pass_length = len(self._class_of) if weights is None else _BLOCK_BATCHES * batch_size
        """Items of a pass."""
        self._passes: dict[int, Ints] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_passes": {}}  # a spawned worker makes its own

    def batch(self, number: int) -> list[int]:
        """Return the items of a batch, numbered from 0."""
        first = number * self.batch_size
        return [self._item(position) for position in range(first, first + self.batch_size)]

    def shape_class_of(self, number: int) -> int:
        """Return the shape class of most items of a batch."""
        classes, counts = np.unique(self._class_of[self.batch(number)], return_counts=True)
        return int(classes[counts.argmax()])

    def whole_batches(self, number: int) -> range:
        """Return the batches that lie within the same pass as ``number``; empty if it belongs to two passes."""
        length, size = self.pass_length, self.batch_size
        epoch = number * size // length
        batches = range(-(-epoch * length // size), (epoch + 1) * length // size)
        return batches if number in batches else range(0)

    def _item(self, position: int) -> int:
        epoch, index = divmod(position, self.pass_length)
        if epoch not in self._passes:
            if len(self._passes) == _NUM_CACHED_PASSES:
                self._passes.pop(next(iter(self._passes)))
            self._passes[epoch] = self._make_pass(epoch)
        return int(self._passes[epoch][index])

    def _make_pass(self, epoch: int) -> Ints:
        """Draw the items of a pass: what completes the batch in progress, batches of one class, the remaining items."""
        rng = np.random.default_rng([self._seed, self._stream, epoch])
        drawn = self._draw(rng)
        batches: list[Ints] = []
        others: list[Ints] = []
        for own in np.unique(self._class_of):
            items = drawn[self._class_of[drawn] == own]
            num_batches = len(items) // self.batch_size
            batches += np.split(items[: num_batches * self.batch_size], num_batches) if num_batches else []
            others.append(items[num_batches * self.batch_size :])
        batches = [batches[index] for index in rng.permutation(len(batches))]
        num_head = min(-epoch * self.pass_length % self.batch_size, self.pass_length)
        while sum(map(len, others)) < num_head:
            others.append(batches.pop())
        rest = np.concatenate(others)
        return np.concatenate([rest[:num_head], *batches, rest[num_head:]])

    def _draw(self, rng: np.random.Generator) -> Ints:
        if self._cumulative is None:
            return rng.permutation(self.pass_length)
        drawn = np.searchsorted(self._cumulative, rng.random(self.pass_length) * self._cumulative[-1], side="right")
        return np.minimum(drawn, len(self._class_of) - 1)  # a product can be rounded up to the sum


def match_shapes(order: BatchOrder, number: int, wanted: Callable[[int], int]) -> int:
    """Exchange batches so that as many as possible have the shape class that is wanted at their number.

    Batches change places within blocks of 64 of the same pass, so every batch still comes once.

    Args:
        order: whose batches are exchanged.
        number: of a batch, from 0.
        wanted: gives the shape class for a number.

    Returns:
        The number of the batch to use in its place.
    """
    batches = order.whole_batches(number)
    if not batches:
        return number
    start = batches.start + (number - batches.start) // _BLOCK_BATCHES * _BLOCK_BATCHES
    block = range(start, min(start + _BLOCK_BATCHES, batches.stop))
    free: dict[int, list[int]] = {}
    for candidate in reversed(block):
        free.setdefault(order.shape_class_of(candidate), []).append(candidate)
    chosen = {slot: free[wanted(slot)].pop() for slot in block if free.get(wanted(slot))}
    remaining = sorted(candidate for candidates in free.values() for candidate in candidates)
    chosen |= zip((slot for slot in block if slot not in chosen), remaining, strict=True)
    return chosen[number]


ReadImage = Callable[[str], Pixels]


@dataclass(frozen=True)
class StepBatch:
    """The images of one training step in one process, as Detectron2 inputs."""

    labeled: list[dict[str, Any]]
    unlabeled_ids: list[str]
    unlabeled_weak: list[dict[str, Any]]
    unlabeled_strong: list[dict[str, Any]]
    patches: list[tuple[ObjectPatch, ...]] = field(default_factory=list)
    """Objects to paste into each strong view; empty where nothing is pasted into any."""

    def pin_memory(self) -> "StepBatch":
        """Return the batch with its pixels in page-locked memory, from where a GPU copies without waiting."""
        labeled, weak, strong = (
            [{**example, "image": example["image"].pin_memory()} for example in examples]
            for examples in (self.labeled, self.unlabeled_weak, self.unlabeled_strong)
        )
        return StepBatch(labeled, self.unlabeled_ids, weak, strong, self.patches)


class SemiSupervisedBatches(Dataset[StepBatch]):
    """Item i is the batch of iteration i. Labeled images come as a strong view every second time."""

    def __init__(
        self,
        labeled: Sequence[Example],
        unlabeled: Sequence[Example],
        read_image: ReadImage,
        augmentation: AugmentationConfig,
        *,
        batch_sizes: tuple[int, int],
        burn_in_iterations: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sampling_weights: NDArray[np.float64] | None = None,
        paste_rare_frac: float = 0.0,
        paste_objects_per_view: int = 1,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            labeled: at least one example.
            unlabeled: may be empty.
            read_image: gives the RGB pixels of an uri.
            augmentation: size and strength of the views.
            batch_sizes: labeled and unlabeled images per iteration.
            burn_in_iterations: iterations without unlabeled images.
            seed: of order and views.
            rank: number of this process; it makes its share of every batch.
            world_size: processes that train as one.
            sampling_weights: one for each unlabeled image, which is drawn in proportion to it
                (docs/method.md#sampling). None: every image once per pass.
            paste_rare_frac: share of the strong views that objects are pasted into (docs/method.md#copy-paste).
            paste_objects_per_view: objects that are drawn for such a view.

        Raises:
            ValueError: no labeled example, or a batch that does not divide evenly among the processes.
        """
        if not labeled:
            raise ValueError("labeled images are 0, expected at least 1")
        for kind, size in zip(("labeled", "unlabeled"), batch_sizes, strict=True):
            if size % world_size:
                raise ValueError(f"{kind} images per step are {size}, expected a multiple of the {world_size} devices")
        self._labeled, self._unlabeled = labeled, unlabeled
        self._read_image, self._augmentation, self._seed = read_image, augmentation, seed
        self._num_labeled, self._num_unlabeled = batch_sizes[0], batch_sizes[1] if unlabeled else 0
        self._burn_in, self._rank, self._world_size = burn_in_iterations, rank, world_size
        self._paste_rare_frac, self._rare_objects = paste_rare_frac, RareObjectSampler(labeled)
        self._paste_objects_per_view = paste_objects_per_view
        labeled_classes, unlabeled_classes = (
            [example.shape_class for example in examples] for examples in (labeled, unlabeled)
        )
        self._labeled_order = BatchOrder(labeled_classes, batch_sizes[0], seed, 0)
        self._unlabeled_order = BatchOrder(unlabeled_classes, batch_sizes[1], seed, 1, sampling_weights)

    def random_unlabeled(self, max_images: int) -> list[Example]:
        """Return a uniform random subset of the unlabeled images, the same each time."""
        order = np.random.default_rng([self._seed, 4]).permutation(len(self._unlabeled))
        return [self._unlabeled[index] for index in order[:max_images]]

    def __getitem__(self, iteration: int) -> StepBatch:
        """Return the batch of one iteration."""
        labeled_items = self._labeled_order.batch(iteration)
        labeled = [
            self._labeled_input(self._labeled[labeled_items[slot]], self._rng(2, iteration, slot))
            for slot in self._rank_slice(self._num_labeled)
        ]
        ids, weak, strong, patches = [], [], [], []
        has_unlabeled = self._num_unlabeled > 0 and iteration >= self._burn_in
        unlabeled_items = self._unlabeled_items(iteration - self._burn_in) if has_unlabeled else []
        for slot in self._rank_slice(len(unlabeled_items)):
            rng = self._rng(3, iteration, slot)
            example = self._unlabeled[unlabeled_items[slot]]
            pixels, example = self._read_view(example, rng)
            pixels, _ = weak_augment(pixels, example, self._augmentation, rng)
            ids.append(example.image_id)
            weak.append(model_input(pixels))
            strong.append(model_input(strong_augment(pixels, self._augmentation, rng)))
            if self._paste_rare_frac:
                patches.append(self._draw_patches((pixels.shape[0], pixels.shape[1]), self._rng(5, iteration, slot)))
        return StepBatch(labeled, ids, weak, strong, patches)

    def _unlabeled_items(self, number: int) -> list[int]:
        """Unlabeled images of one step; of the shape of the labeled ones where possible, for they are padded alike."""

        def labeled_shape(other: int) -> int:
            return self._labeled_order.shape_class_of(other + self._burn_in)

        return self._unlabeled_order.batch(match_shapes(self._unlabeled_order, number, labeled_shape))

    def _draw_patches(self, view_size_px: tuple[int, int], rng: np.random.Generator) -> tuple[ObjectPatch, ...]:
        """Cut objects out of weak views of labeled images, in ``paste_rare_frac`` of all calls."""
        if rng.random() >= self._paste_rare_frac:
            return ()
        drawn = [self._draw_patch(view_size_px, rng) for _ in range(self._paste_objects_per_view)]
        return tuple(patch for patch in drawn if patch is not None)

    def _draw_patch(self, view_size_px: tuple[int, int], rng: np.random.Generator) -> ObjectPatch | None:
        drawn = self._rare_objects.draw(rng)
        if drawn is None:
            return None
        image, box = drawn
        example = self._labeled[image]
        pixels = self._read_image(example.uri)
        if _is_tile(self._augmentation, rng):
            pixels, example = tile_with_object(pixels, example, box, self._augmentation.tile_side_px, rng)
        pixels, boxes = weak_augment(pixels, example, self._augmentation, rng)
        return cut_out(pixels, boxes[box], int(example.class_ids[box]), view_size_px, rng)

    def _rank_slice(self, num_slots: int) -> range:
        """This process's slots of a batch; order and views do not depend on how many processes there are."""
        return range(self._rank, num_slots, self._world_size)

    def _rng(self, stream: int, iteration: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, iteration, slot])

    def _labeled_input(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        pixels, example = self._read_view(example, rng)
        pixels, boxes = weak_augment(pixels, example, self._augmentation, rng)
        if rng.random() < 0.5:
            pixels = strong_augment(pixels, self._augmentation, rng)
        return training_input(pixels, boxes, example)

    def _read_view(self, example: Example, rng: np.random.Generator) -> tuple[Pixels, Example]:
        return read_view(self._read_image, example, self._augmentation, rng)

    def iterate(self, start: int, stop: int, num_workers: int) -> Generator[StepBatch]:
        """Yield the batches of iterations ``start`` to ``stop - 1``; close it where the loop may end early."""
        return read_ahead(self, start, stop, num_workers)


def read_view(
    read_image: ReadImage, example: Example, config: AugmentationConfig, rng: np.random.Generator
) -> tuple[Pixels, Example]:
    """Return what a view is made of: the image, or a random tile of it (docs/method.md#tiles), with its labels."""
    pixels = read_image(example.uri)
    if not _is_tile(config, rng):
        return pixels, example
    return random_tile(pixels, example, config.tile_side_px, rng)


def _is_tile(config: AugmentationConfig, rng: np.random.Generator) -> bool:
    """Whether a view shows a tile; without tiles nothing is drawn, so that all else stays as it was."""
    return bool(config.tile_side_px) and rng.random() < config.tile_probability


def read_ahead(batches: Dataset[_Batch], start: int, stop: int, num_workers: int) -> Generator[_Batch]:
    """Yield the items ``start`` to ``stop - 1`` of ``batches``, read ahead by ``num_workers`` processes.

    Close the generator where the loop may end early: the workers end with it, and a process that fails would
    wait for them forever, since they ignore the signal that multiprocessing sends them at its end.
    """
    loader: DataLoader[_Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=num_workers,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
    items = iter(loader)
    try:
        yield from items
    finally:
        # torch offers no public way, and ends workers when the last reference is gone. The traceback of an error
        # keeps references: the garbage collector would free the queues first, and no worker would hear of the end.
        # A worker that fails while it ends has nothing left to give: that error must not hide the one before it.
        if isinstance(items, _MultiProcessingDataLoaderIter):
            with suppress(RuntimeError):
                items._shutdown_workers()


def _ignore_signals(_worker: int) -> None:
    """Ignore what ends the whole group: a worker that left at once would break the iteration in progress."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
