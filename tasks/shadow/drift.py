"""Test whether images come from where the pool comes from, by their embeddings (docs/method.md#shadow).

Shape letters: R reference images (the pool), P images to test, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]
LEVEL = 0.05
"""An image is unlike the pool where its p-value is at most this."""
MAX_REFERENCE = 5000
"""Reference images, at most; more are drawn at random."""
_CHUNK = 1024
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Drift:
    """How many images are unlike the pool, against what chance explains."""

    num_images: int
    num_unlike: int
    """Images with a p-value of at most ``LEVEL``."""
    interval: tuple[float, float]
    """Clopper-Pearson interval at 95 % of the share of such images."""
    p_value: float
    """Probability of so many or more if the images came from where the pool comes from."""


def novelty_p_values(reference_RD: NDArray[np.float32], points_PD: NDArray[np.float32], seed: int) -> Floats:
    """Return for each image the share of the pool that is at least as far from its nearest neighbor, (P,).

    ``p_i = (1 + #{j: r_j >= d_i}) / (R + 1)`` with the distance ``d_i`` of the image from the nearest of the pool, and
    ``r_j`` of a pool image from the nearest other one: a conformal p-value (Laxhammar and Falkman 2010). Distances are
    cosine distances of centered embeddings.

    Args:
        reference_RD: embeddings of the pool, at least two.
        points_PD: embeddings to test.
        seed: of the draw where the pool has more than ``MAX_REFERENCE`` images.
    """
    if len(reference_RD) > MAX_REFERENCE:
        rows = np.random.default_rng(seed).choice(len(reference_RD), MAX_REFERENCE, replace=False)
        reference_RD = reference_RD[np.sort(rows)]
    # The mean is the pool's alone: an image's p-value must not depend on the images that are tested beside it.
    mean_D = reference_RD.mean(axis=0, dtype=np.float64).astype(np.float32)
    reference_RD, points_PD = _unit(reference_RD - mean_D), _unit(points_PD - mean_D)
    return _p_values(_nearest(reference_RD, reference_RD, leave_out=True), _nearest(reference_RD, points_PD))


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = vectors_ND / np.maximum(length_N1, np.finfo(np.float32).tiny)
    return unit_ND


def _p_values(own_R: Floats, distance_P: Floats) -> Floats:
    num_as_far_P = len(own_R) - np.searchsorted(np.sort(own_R), distance_P, side="left")
    p_P: Floats = (1 + num_as_far_P) / (len(own_R) + 1)
    return p_P


def _nearest(reference_RD: NDArray[np.float32], points_PD: NDArray[np.float32], *, leave_out: bool = False) -> Floats:
    """Return the cosine distance of each point from the nearest reference, without itself with ``leave_out``."""
    nearest = []
    for first in range(0, len(points_PD), _CHUNK):
        similarity: Floats = points_PD[first : first + _CHUNK].astype(np.float64) @ reference_RD.T
        if leave_out:
            rows = np.arange(len(similarity))
            similarity[rows, first + rows] = -np.inf
        nearest.append(1 - similarity.max(axis=1))
    return np.concatenate([np.zeros(0), *nearest])


def measure_drift(p_value_P: Floats) -> Drift:
    """Test whether more images are unlike the pool than ``LEVEL`` of them, as chance would have it."""
    num_unlike = int((p_value_P <= LEVEL).sum())
    if not len(p_value_P):
        return Drift(0, 0, (0.0, 1.0), 1.0)
    test = binomtest(num_unlike, len(p_value_P), LEVEL, alternative="greater")
    exact = binomtest(num_unlike, len(p_value_P)).proportion_ci(_CONFIDENCE, method="exact")
    return Drift(len(p_value_P), num_unlike, (float(exact.low), float(exact.high)), float(test.pvalue))
