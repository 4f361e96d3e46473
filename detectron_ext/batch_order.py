"""The order in which training sees its images: batches of similar shapes, as a pure function of seed and position.

The images of a batch are padded to one shape. Landscape and portrait together would be computed on up to twice the
pixels. So a batch has images of one shape class where possible, and still every image comes once per pass.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

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
