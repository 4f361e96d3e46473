"""What people said is none of the classes, and the unlabeled images that are like it (docs/method.md#refusals).

Shape letters: N images of a neighborhood graph, D dimensions of an embedding.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from tasks.data.label_store import LabelStore
from tasks.selection.embeddings import Embeddings

UNKNOWN, ACCEPTED, REFUSED = -1, 0, 1
"""States of an image: not labeled; labeled with objects, or nothing was claimed; all that was claimed is none."""
_NEIGHBORS = 10
_DISCOUNT = 0.9
"""What is left of a refusal after one step from neighbor to neighbor."""
_STEPS = 150
"""0.9 to this power is 1e-7: longer walks change nothing."""


def refused_images(store: LabelStore) -> frozenset[str]:
    """Return the images for which boxes were pre-drawn, and a person answered that nothing is there."""
    return frozenset(
        image_id
        for image_id, answer in store.current.items()
        if answer.label.status == "empty" and answer.label.preannotations
    )


def spread_refusals(vectors_ND: Embeddings, state_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how much each image is like refused ones, (N,) in [0, 1]: 1 for refused, 0 for accepted images.

    An image of unknown state has 0.9 times the mean of its nearest neighbors, weighted by the square of a positive
    cosine: the chance that a walk from neighbor to neighbor, which ends with probability 0.1 at each step and at every
    labeled image, ends at a refused one.

    Args:
        vectors_ND: of length 1, or 0 where nothing is known; such an image is like no other.
        state_N: UNKNOWN, ACCEPTED or REFUSED.
    """
    result: NDArray[np.float64] = (state_N == REFUSED).astype(np.float64)
    is_unknown_N = state_N == UNKNOWN
    if not result.any() or not is_unknown_N.any():
        return result
    from sklearn.neighbors import NearestNeighbors  # seconds to import, so only where it is used

    unknown = vectors_ND[is_unknown_N]
    count = min(_NEIGHBORS + 1, len(vectors_ND))
    neighbors = NearestNeighbors(n_neighbors=count).fit(vectors_ND).kneighbors(unknown, return_distance=False)
    rows = np.repeat(np.arange(len(unknown)), count)
    columns = neighbors.ravel()
    cosine = np.einsum("ij,ij->i", unknown[rows], vectors_ND[columns]).astype(np.float64)
    cosine[columns == np.flatnonzero(is_unknown_N)[rows]] = 0  # not its own neighbor
    weights = csr_matrix((np.maximum(cosine, 0) ** 2, (rows, columns)), shape=(len(unknown), len(vectors_ND)))
    total = np.asarray(weights.sum(axis=1)).ravel()
    walk = _DISCOUNT * diags(1 / np.where(total > 0, total, 1)) @ weights
    for _ in range(_STEPS):
        result[is_unknown_N] = walk @ result
    return result
