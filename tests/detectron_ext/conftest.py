"""A real but tiny detector: random weights, 64 px images."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.data import StepBatch
from detectron_ext.meta_arch import PerImageRCNN, build_detector
from tests.detectron_ext.tiny import TINY
from tests.detectron_ext.tiny_run import SCHEDULE


@pytest.fixture
def detector() -> PerImageRCNN:
    torch.manual_seed(0)
    return build_detector(TINY, "cpu")


@pytest.fixture
def example() -> Callable[..., dict[str, Any]]:
    """Makes Detectron2 inputs: ``example(seed, boxes, classes)``."""

    def make(
        seed: int, boxes: list[list[float]] | None = None, classes: list[int] | None = None, side_px: int = 64
    ) -> dict[str, Any]:
        pixels = np.random.default_rng(seed).integers(0, 256, (3, side_px, side_px))
        instances = Instances((side_px, side_px))
        instances.gt_boxes = Boxes(torch.tensor(boxes or [], dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes or [], dtype=torch.int64)
        return {"image": torch.from_numpy(pixels.astype(np.float32)), "instances": instances}

    return make


@pytest.fixture
def batch_of(example: Callable[..., dict[str, Any]]) -> Callable[[int], StepBatch]:
    """The batch of an iteration of ``tiny_run.SCHEDULE``: without unlabeled images during burn-in."""

    def make(iteration: int) -> StepBatch:
        labeled = [example(10 * iteration, [[5, 5, 30, 40]], [1]), example(10 * iteration + 1)]
        if iteration < SCHEDULE.burn_in:
            return StepBatch(labeled, [], [], [])
        weak = [example(10 * iteration + 2), example(10 * iteration + 3)]
        return StepBatch(labeled, ["a", "b"], weak, deepcopy(weak))

    return make
