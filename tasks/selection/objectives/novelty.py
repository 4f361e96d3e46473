"""Want images whose regions look like nothing that was labeled."""

import numpy as np
from numpy.typing import NDArray

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView
from tasks.selection.refusals import ACCEPTED, REFUSED, UNKNOWN, spread_refusals

_NEIGHBORS = 5
_MAX_SPREAD = 10_000


class Novelty:
    """Distance to the nearest labeled images, relative to how far these are from one another.

    The local outlier factor (Breunig et al. 2000) with labeled images as the reference: the mean distance of a
    candidate to its k nearest labeled images, divided by the mean distance of these to their own k nearest. What is
    like an image that people refused, or like its neighbors, is less novel (docs/method.md#refusals).
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the factor of each candidate, (P,); around 1 for images like the labeled ones.

        With fewer than two labeled images it is the distance to the mean of the pool.
        """
        candidates, labeled = pool.content
        if len(labeled) < 2:
            return np.asarray(np.linalg.norm(candidates.astype(np.float64), axis=1))
        from sklearn.neighbors import NearestNeighbors  # seconds to import, so only where it is used

        neighbors = min(_NEIGHBORS, len(labeled) - 1)
        index = NearestNeighbors(n_neighbors=neighbors).fit(labeled)
        own_distance_L = index.kneighbors()[0].mean(axis=1)  # of a labeled image to the others
        is_refused_L = _is_refused(pool, len(labeled))
        if not is_refused_L.all():  # a refused image stands alone; beside it nothing foreign would look far
            own_distance_L[is_refused_L] = np.median(own_distance_L[~is_refused_L])
        distances, nearest = index.kneighbors(candidates)
        density = np.maximum(own_distance_L[nearest].mean(axis=1), 1e-6)
        factor = np.asarray(distances.mean(axis=1) / density, dtype=np.float64)
        return factor * (1 - _refusal(pool, factor, is_refused_L)) if is_refused_L.any() else factor


def _is_refused(pool: PoolView, num_labeled: int) -> NDArray[np.bool_]:
    """Which labeled images people refused, (L,); none where they have no embeddings."""
    ids = pool.labeled_image_ids
    return np.isin(ids, sorted(pool.refused_image_ids)) if len(ids) == num_labeled else np.zeros(num_labeled, bool)


def _refusal(pool: PoolView, factor_P: Values, is_refused_L: NDArray[np.bool_]) -> Values:
    """Return how much each candidate is like what people refused, (P,); of the most novel ones, as others are not."""
    candidates, labeled = pool.content
    refusal_P = np.zeros(len(candidates))
    by_novelty = np.lexsort((pool.image_ids.to_numpy(), -factor_P))[:_MAX_SPREAD]
    state_N = np.concatenate([np.full(len(by_novelty), UNKNOWN), np.where(is_refused_L, REFUSED, ACCEPTED)])
    spread_N = spread_refusals(np.concatenate([candidates[by_novelty], labeled]), state_N)
    refusal_P[by_novelty] = spread_N[: len(by_novelty)]
    return refusal_P
