"""VICReg, a loss that learns features from two views without labels (docs/method.md#pretraining).

Bardes, Ponce and LeCun (2022), https://arxiv.org/abs/2105.04906, with the coefficients and means of the authors' code.
Shape shorthand: R regions that both views show, D dimensions of an embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

INVARIANCE_WEIGHT, VARIANCE_WEIGHT, COVARIANCE_WEIGHT = 25.0, 25.0, 1.0
_VARIANCE_EPSILON = 1e-4


class VicregTerms(NamedTuple):
    """The three terms, scalars >= 0."""

    invariance: Tensor
    """Mean squared difference between the embeddings of the two views."""
    variance: Tensor
    """By how much the standard deviation over regions is below 1, mean over dimensions and views."""
    covariance: Tensor
    """Sum of the squared covariances between dimensions, over D, summed over views."""

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return (
            INVARIANCE_WEIGHT * self.invariance + VARIANCE_WEIGHT * self.variance + COVARIANCE_WEIGHT * self.covariance
        )


def vicreg(first_RD: Tensor, second_RD: Tensor) -> VicregTerms:
    """Compare the embeddings of the same regions in two views.

    Args:
        first_RD: of the first view; R >= 2: one value has no standard deviation.
        second_RD: of the second view, in the same order.
    """
    views = first_RD.float(), second_RD.float()
    variance = torch.stack([F.relu(1 - (one.var(dim=0) + _VARIANCE_EPSILON).sqrt()).mean() for one in views])
    covariance = torch.stack([_squared_covariances(one) for one in views])
    return VicregTerms(F.mse_loss(*views), variance.mean(), covariance.sum())


def _squared_covariances(one_RD: Tensor) -> Tensor:
    num_regions, num_dims = one_RD.shape
    centered_RD = one_RD - one_RD.mean(dim=0)
    covariance_DD = centered_RD.T @ centered_RD / (num_regions - 1)
    return (covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / num_dims


def embedding_spread(embedding_RD: Tensor) -> Tensor:
    """Return how far apart the directions of embeddings are, scalar: 0 where all are equal, 1 in all directions alike.

    The standard deviation of the embeddings of length 1, mean over dimensions, over its value sqrt(1/D) for directions
    that are spread evenly: the measure of collapse of Chen and He (2021), https://arxiv.org/abs/2011.10566.
    """
    unit_RD = F.normalize(embedding_RD.float(), dim=1)
    return unit_RD.std(dim=0).mean() * unit_RD.shape[1] ** 0.5
