"""Want images whose regions look like nothing that was labeled."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView

_NEIGHBORS = 5


class Novelty:
    """Distance to the nearest labeled images, relative to how far these are from one another.

    The local outlier factor (Breunig et al. 2000) with labeled images as the reference: the mean distance of a
    candidate to its k nearest labeled images, divided by the mean distance of these to their own k nearest.
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the factor of each candidate, (P,); around 1 for images like the labeled ones.

        With fewer than two labeled images it is the distance to the mean of the pool.
        """
        candidates, labeled = pool.content
        if len(labeled) < 2:
            return np.asarray(np.linalg.norm(candidates.astype(np.float64), axis=1))
        neighbors = min(_NEIGHBORS, len(labeled) - 1)
        index = NearestNeighbors(n_neighbors=neighbors).fit(labeled)
        own_distance_L = index.kneighbors()[0].mean(axis=1)  # of a labeled image to the others
        distances, nearest = index.kneighbors(candidates)
        density = np.maximum(own_distance_L[nearest].mean(axis=1), 1e-6)
        return np.asarray(distances.mean(axis=1) / density, dtype=np.float64)
