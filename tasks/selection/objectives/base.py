"""Define the interface of an objective of selection, and the geometry that several of them share.

Shape letters: P candidates, L labeled images, D dimensions of an embedding.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.selection.pool_view import Embeddings, PoolView

Values = NDArray[np.float64]


class Objective(Protocol):
    """What makes an image worth a label; a number for each candidate."""

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return how much each candidate is wanted, (P,) in the order of ``pool.candidates``; larger is more.

        Any scale: objectives are compared by rank. Must not depend on the order of the candidates.
        """
        ...


def centered(vectors_PD: Embeddings, reference_LD: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Subtract the common mean of both sets, and scale each vector to length 1.

    Features after a ReLU all point into one octant, where all cosines are near 1; from their mean they spread.
    A vector of zeros stays 0: nothing was detected there, which does not make such images alike.
    """
    both = np.concatenate([vectors_PD, reference_LD.reshape(-1, vectors_PD.shape[1])]).astype(np.float64)
    known = both.any(axis=1)
    if known.any():
        both[known] -= both[known].mean(axis=0, keepdims=True)
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-9)
    unit = both.astype(np.float32)
    return unit[: len(vectors_PD)], unit[len(vectors_PD) :]


def described(pool: PoolView) -> tuple[Embeddings, Embeddings]:
    """Return what is known of the content of the candidates (P, D) and of the labeled images (L, D), centered.

    Region embeddings where the teacher detects anything; image embeddings where it detects nothing in the whole pool.
    """
    regions = pool.region_embeddings()
    if regions.any():
        return centered(regions, pool.labeled_region_embeddings)
    return centered(pool.embeddings(), pool.labeled_embeddings)
