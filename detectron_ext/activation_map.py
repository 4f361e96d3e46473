"""Where a feature map is active, without a gradient, and how much of that lies in a box.

Shape shorthand: R boxes of one image; C channels of a map of (H, W) cells.
"""

import torch
from torch import Tensor

LEVEL = "p3"
"""Level of the pyramid: 8 px a cell. Coarser maps say nothing of small objects (docs/guides/learners.md)."""


@torch.no_grad()
def activation_energy(features_CHW: Tensor) -> Tensor:
    """Return the energy of the first principal component in every cell of a feature map, (H, W), sum 1.

    The component comes from the cells' deviations from their mean, as in EigenCAM (Muhammad and Yeasin 2020); its
    square has no sign to choose. Even (1 / HW) where all cells are the same.
    """
    channels, height, width = features_CHW.shape
    cells = features_CHW.reshape(channels, -1).T.double()
    cells = cells - cells.mean(dim=0)
    _, directions = torch.linalg.eigh(cells.T @ cells)  # by rising eigenvalue
    energy = (cells @ directions[:, -1]).square()
    total = energy.sum()
    if not total > 0:
        return torch.full((height, width), 1 / (height * width), dtype=torch.float64, device=features_CHW.device)
    return (energy / total).reshape(height, width)


def activation_in_boxes(energy_HW: Tensor, boxes_R4: Tensor, cell_px: int) -> Tensor:
    """Compare each box's share e of the energy with its share a of the area, ``e / (e + a)``, (R,) in [0, 1].

    0.5 is what a box of that size holds on average; 0 for a box without area.

    Args:
        energy_HW: sum 1.
        boxes_R4: corners in pixels of the image whose upper left corner is that of the map.
        cell_px: side of a cell.
    """
    height, width = energy_HW.shape
    boxes_R4 = boxes_R4.double() / cell_px
    covered_RW = _covered(boxes_R4[:, 0], boxes_R4[:, 2], width)
    covered_RH = _covered(boxes_R4[:, 1], boxes_R4[:, 3], height)
    energy_R = torch.einsum("rh,hw,rw->r", covered_RH, energy_HW.double(), covered_RW)
    area_R = covered_RH.sum(dim=1) * covered_RW.sum(dim=1) / (height * width)
    return (energy_R / (energy_R + area_R).clamp(min=torch.finfo(torch.float64).tiny)).float()


def _covered(low_R: Tensor, high_R: Tensor, num_cells: int) -> Tensor:
    """Return the covered share of every cell along one side, (R, num_cells)."""
    start = torch.arange(num_cells, dtype=torch.float64, device=low_R.device)
    return (torch.minimum(start + 1, high_R[:, None]) - torch.maximum(start, low_R[:, None])).clamp(min=0)
