"""Want images between the groups that the pool falls into."""

import warnings

import numpy as np
from numpy.typing import NDArray

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView

_COMPONENTS = 16
_MAX_GROUPED = 3_000
_GRAPH_NEIGHBORS = 10
_NEIGHBORS = 5


class Boundary:
    """Doubt about the group of an image (docs/method.md#boundary).

    Principal components, then spectral clustering (Ng, Jordan and Weiss 2002), which finds groups of any shape where a
    mixture of Gaussians finds ellipses. The membership in a group is inverse to the mean distance to its nearest
    images, so that one odd image inside a group does not make a border. With r1 >= r2 the two largest memberships, of
    a sum of 1, the value is ``1 - (r1 - r2)``.
    """

    def __init__(self, num_groups: int = 8) -> None:
        """Keep the number of groups; at most a tenth of the images."""
        self._num_groups = num_groups

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the value of each candidate, (P,) in [0, 1]; 0 where the pool has less than two groups."""
        vectors, _ = pool.content
        order = np.argsort(np.asarray(pool.image_ids, dtype=str), kind="stable")
        values = np.empty(len(order))
        values[order] = boundary_values(vectors[order], self._num_groups, seed)
        return values  # a fit must not depend on the order of the rows


def boundary_values(vectors_PD: NDArray[np.floating], num_groups: int, seed: int) -> Values:
    """Return how much each image stands between groups, (P,) in [0, 1]; see ``Boundary``.

    Groups are found among 3,000 images, drawn at random, where there are more.
    """
    num_groups = min(num_groups, len(vectors_PD) // 10)
    if num_groups < 2:
        return np.zeros(len(vectors_PD))
    from sklearn.decomposition import PCA  # seconds to import, so only where it is used

    grouped = np.sort(np.random.default_rng(seed).permutation(len(vectors_PD))[:_MAX_GROUPED])
    pca = PCA(min(_COMPONENTS, *vectors_PD[grouped].shape), svd_solver="full").fit(vectors_PD[grouped])
    reduced = np.asarray(pca.transform(vectors_PD), dtype=np.float64)
    group_of = spectral_groups(reduced[grouped], num_groups, seed)
    closeness = np.stack(
        [1 / _mean_distance(reduced, grouped[group_of == group]) for group in np.unique(group_of)], axis=1
    )
    if closeness.shape[1] < 2:
        return np.zeros(len(vectors_PD))
    membership = closeness / closeness.sum(axis=1, keepdims=True)
    top_two = np.partition(membership, -2, axis=1)[:, -2:]
    return np.asarray(1 - (top_two[:, 1] - top_two[:, 0]), dtype=np.float64)


def spectral_groups(points_ND: Values, num_groups: int, seed: int) -> NDArray[np.int64]:
    """Return the group of each point, (N,): spectral clustering of the graph of nearest neighbors."""
    from sklearn.cluster import SpectralClustering  # as above

    clustering = SpectralClustering(
        num_groups,
        affinity="nearest_neighbors",
        n_neighbors=min(_GRAPH_NEIGHBORS, len(points_ND) - 1),
        assign_labels="cluster_qr",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Graph is not fully connected")  # groups may well lie apart
        return np.asarray(clustering.fit_predict(points_ND), dtype=np.int64)


def _mean_distance(points_PD: Values, members: NDArray[np.int64]) -> Values:
    """Mean distance of each point to its nearest members of a group other than itself, (P,), above 0."""
    from sklearn.neighbors import NearestNeighbors  # as above

    count = min(_NEIGHBORS + 1, len(members))
    distance_PK = NearestNeighbors(n_neighbors=count).fit(points_PD[members]).kneighbors(points_PD)[0]
    is_member_P = np.zeros(len(points_PD), dtype=bool)
    is_member_P[members] = True
    without_itself_P = distance_PK[:, 1:].mean(axis=1) if count > 1 else np.full(len(points_PD), np.inf)
    nearest_P = distance_PK[:, :_NEIGHBORS].mean(axis=1)
    return np.asarray(np.maximum(np.where(is_member_P, without_itself_P, nearest_P), 1e-9))
