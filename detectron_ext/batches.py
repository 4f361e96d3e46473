"""Batches as a pure function of seed and iteration: a resumed run needs no sampler state."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from detectron_ext.views import Example, Pixels, ViewSpec, model_input, strong_view, training_input, weak_view

ReadImage = Callable[[str], Pixels]


@dataclass(frozen=True)
class StepBatch:
    """What one process sees of a training step."""

    labeled: list[dict[str, Any]]
    unlabeled_ids: list[str]
    unlabeled_weak: list[dict[str, Any]]
    unlabeled_strong: list[dict[str, Any]]


class EndlessOrder:
    """Endless passes over ``length`` items, each pass a fresh permutation: nothing is left out for long."""

    def __init__(self, length: int, seed: int, stream: int) -> None:
        """``stream`` keeps several orders of one seed apart."""
        self._length, self._seed, self._stream = length, seed, stream
        self._permutation = lru_cache(maxsize=2)(self._permutation_of)

    def _permutation_of(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self._seed, self._stream, epoch]).permutation(self._length)

    def __getitem__(self, position: int) -> int:
        """Item at an endless position >= 0."""
        return int(self._permutation(position // self._length)[position % self._length])


class TrainingBatches(Dataset[StepBatch]):
    """Item i is the batch of iteration i. Labeled images come as a strong view every second time."""

    def __init__(
        self,
        labeled: Sequence[Example],
        unlabeled: Sequence[Example],
        read_image: ReadImage,
        views: ViewSpec,
        *,
        batch_sizes: tuple[int, int],
        burn_in_iterations: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            labeled: at least one example.
            unlabeled: may be empty.
            read_image: gives the RGB pixels of an uri.
            views: size and strength of the views.
            batch_sizes: labeled and unlabeled images per iteration.
            burn_in_iterations: iterations without unlabeled images.
            seed: of order and views.
            rank: number of this process; it makes its share of every batch.
            world_size: processes that train as one.

        Raises:
            ValueError: no labeled example, or a batch that does not divide evenly among the processes.
        """
        if not labeled:
            raise ValueError("labeled images are 0, expected at least 1")
        for kind, size in zip(("labeled", "unlabeled"), batch_sizes, strict=True):
            if size % world_size:
                raise ValueError(f"{kind} images per step are {size}, expected a multiple of the {world_size} devices")
        self._labeled, self._unlabeled = labeled, unlabeled
        self._read_image, self._views, self._seed = read_image, views, seed
        self._num_labeled, self._num_unlabeled = batch_sizes[0], batch_sizes[1] if unlabeled else 0
        self._burn_in, self._rank, self._world_size = burn_in_iterations, rank, world_size
        self._labeled_order = EndlessOrder(len(labeled), seed, 0)
        self._unlabeled_order = EndlessOrder(max(len(unlabeled), 1), seed, 1)

    def __getitem__(self, iteration: int) -> StepBatch:
        """The batch of one iteration."""
        first = iteration * self._num_labeled
        labeled = [
            self._labeled_input(self._labeled[self._labeled_order[first + slot]], self._rng(2, iteration, slot))
            for slot in self._share(self._num_labeled)
        ]
        ids, weak, strong = [], [], []
        for slot in self._share(self._num_unlabeled if iteration >= self._burn_in else 0):
            rng = self._rng(3, iteration, slot)
            position = (iteration - self._burn_in) * self._num_unlabeled + slot
            example = self._unlabeled[self._unlabeled_order[position]]
            pixels, _ = weak_view(self._read_image(example.uri), example, self._views, rng)
            ids.append(example.image_id)
            weak.append(model_input(pixels))
            strong.append(model_input(strong_view(pixels, self._views, rng)))
        return StepBatch(labeled, ids, weak, strong)

    def _share(self, num_slots: int) -> range:
        """This process's slots of a batch; order and views do not depend on how many processes there are."""
        return range(self._rank, num_slots, self._world_size)

    def _rng(self, stream: int, iteration: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, iteration, slot])

    def _labeled_input(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        pixels, boxes = weak_view(self._read_image(example.uri), example, self._views, rng)
        if rng.random() < 0.5:
            pixels = strong_view(pixels, self._views, rng)
        return training_input(pixels, boxes, example)

    def iterate(self, start: int, stop: int, workers: int) -> Iterator[StepBatch]:
        """Batches of iterations ``start`` to ``stop - 1``, read ahead by ``workers`` processes."""
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=range(start, stop),
                num_workers=workers,
                worker_init_fn=_leave_signals_to_the_training,
            )
        )


def _leave_signals_to_the_training(_worker: int) -> None:
    """SIGTERM reaches the whole group; a worker that went at once would break the iteration still to be finished."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
