"""A real but tiny detector: random weights, 64 px images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detectron_ext.meta_arch import PerImageRCNN, build_detector
from tests.detectron_ext.tiny import TINY


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
