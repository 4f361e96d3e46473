"""Where the teacher's proposal network cannot tell object from background: map, weights of background, and metric.

Shape shorthand: C anchors per cell, A anchors of one image over all levels; a map of (H, W) cells.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

LEVEL_INDEX = 1
"""Of the map among the proposal network's levels: p3, 8 px a cell."""
STORED_SIDE = 16
"""Cells of the map that is kept of an image, along each side."""


class ObjectnessDoubt(NamedTuple):
    """How much the proposal network doubts about one image, and where."""

    top_mean: float
    """See ``top_share_mean``."""
    map_percent: NDArray[np.uint8] | None
    """See ``coarse_map``; None for a picture that was seen in tiles only."""


@torch.no_grad()
def objectness_entropy(logits_CHW: Tensor) -> Tensor:
    """Return the entropy of the likeliest object in every cell, (H, W) in [0, 1]: 1 bit at a probability of 0.5."""
    logits_HW = logits_CHW.float().amax(dim=0)
    p_HW = torch.sigmoid(logits_HW)
    return (p_HW * F.softplus(-logits_HW) + (1 - p_HW) * F.softplus(logits_HW)) / math.log(2)


def background_weights(entropy_HW: Tensor, anchors_A4: Tensor, cell_px: int) -> Tensor:
    """Return ``1 - H`` of the cell that holds an anchor's center, (A,) in [0, 1]; of the nearest one outside the map.

    Args:
        entropy_HW: see ``objectness_entropy``.
        anchors_A4: corners in pixels.
        cell_px: side of a cell.
    """
    height, width = entropy_HW.shape
    column_A, row_A = (
        ((anchors_A4[:, axis] + anchors_A4[:, axis + 2]) / 2 / cell_px).floor().long().clamp(0, last)
        for axis, last in ((0, width - 1), (1, height - 1))
    )
    return 1 - entropy_HW[row_A, column_A]


def top_share_mean(entropy_HW: Tensor, frac: float) -> float:
    """Return the mean of the ``ceil(frac * H * W)`` largest entropies, [0, 1] (docs/method.md#objectness-entropy)."""
    num_cells = math.ceil(frac * entropy_HW.numel())
    return float(entropy_HW.flatten().double().topk(num_cells).values.mean())


def coarse_map(entropy_HW: Tensor) -> NDArray[np.uint8]:
    """Return the largest entropy in each of 16 x 16 fields of the image, in percent: a small doubt stays visible."""
    coarse_HW = F.adaptive_max_pool2d(entropy_HW.float()[None, None], STORED_SIDE)[0, 0]
    return np.asarray((100 * coarse_HW).round().cpu().numpy().astype(np.uint8))
