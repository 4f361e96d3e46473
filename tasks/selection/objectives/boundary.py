"""Want images between the groups that the pool falls into."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView

_COMPONENTS = 16
_MAX_FITTED = 20_000
_NEIGHBORS = 10


class Boundary:
    """Doubt about the group of an image, and disagreement of its neighbors about theirs.

    Principal components, then a mixture of Gaussians with ``num_groups`` components. With r1 >= r2 the two largest
    memberships of an image, its value is ``1 - (r1 - r2)``, times the share of its nearest candidates whose likeliest
    group is another one (smoothed), so that one odd image inside a group does not count as a border.
    """

    def __init__(self, num_groups: int = 8) -> None:
        """Keep the number of groups; at most a tenth of the images that are fitted."""
        self._num_groups = num_groups

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the value of each candidate, (P,) in [0, 1]; 0 where the pool has less than two groups."""
        vectors, _ = pool.content
        order = np.argsort(np.asarray(pool.candidates.index, dtype=str), kind="stable")
        by_id = boundary_values(vectors[order].astype(np.float64), self._num_groups, seed)
        values = np.empty(len(order))
        values[order] = by_id  # a fit must not depend on the order of the rows
        return values


def boundary_values(vectors_PD: Values, num_groups: int, seed: int) -> Values:
    """Return how much each image stands between groups, (P,) in [0, 1]; see ``Boundary``."""
    num_groups = min(num_groups, len(vectors_PD) // 10)
    if num_groups < 2:
        return np.zeros(len(vectors_PD))
    fitted = np.sort(np.random.default_rng(seed).permutation(len(vectors_PD))[:_MAX_FITTED])
    pca = PCA(min(_COMPONENTS, *vectors_PD[fitted].shape), svd_solver="full").fit(vectors_PD[fitted])
    reduced = pca.transform(vectors_PD)
    mixture = GaussianMixture(num_groups, reg_covar=1e-4, random_state=seed, n_init=2).fit(reduced[fitted])
    memberships = mixture.predict_proba(reduced)
    top_two = np.partition(memberships, -2, axis=1)[:, -2:]
    doubt = 1 - (top_two[:, 1] - top_two[:, 0])
    group = memberships.argmax(axis=1)
    count = min(_NEIGHBORS, len(reduced) - 1)
    nearest = NearestNeighbors(n_neighbors=count).fit(reduced).kneighbors(return_distance=False)
    other_share = (group[nearest] != group[:, None]).mean(axis=1)
    return np.asarray(doubt * (other_share * count + 1) / (count + 1), dtype=np.float64)
