"""Select by diversity alone: k-center greedy on image embeddings, with the labeled images as covered.

Sener and Savarese, Active learning for convolutional neural networks: a core-set approach, ICLR 2018; the greedy
version. Shape letters: P candidates, L labeled images, C channels of an embedding.
"""

import numpy as np
import pandas as pd

from tasks.selection.diversity import spread
from tasks.selection.embeddings import Embeddings
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import seeded_shuffle

_MAX_CENTERS = 4096
"""So many images are chosen one after the other; a batch is smaller, and each choice passes over the pool once."""
_MAX_POOL = 100_000
"""Of a larger pool a uniform draw of so many is ordered: a pass over millions for every choice would take hours."""


class Coreset:
    """The image farthest from everything labeled or chosen before it first."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids in the order of greedy k-center; ties by id.

        After the first 4096 come the others, farthest from the covered ones first. Of more than 100,000 images so many
        are drawn, and the others come last.
        """
        drawn, others = sorted(pool.image_ids), []
        if not drawn:
            return []
        if len(drawn) > _MAX_POOL:
            shuffled = seeded_shuffle(drawn, seed=seed, purpose="coreset")
            drawn, others = sorted(shuffled[:_MAX_POOL]), shuffled[_MAX_POOL:]
        order = greedy_k_center(pool.embeddings(drawn), pool.labeled_embeddings, num_centers=_MAX_CENTERS)
        return [*(drawn[index] for index in order), *others]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Say what the position rests on."""
        return f"diversity: number {position} of {num_candidates} by distance to what is labeled or chosen before"


def greedy_k_center(points_PC: Embeddings, covered_LC: Embeddings, *, num_centers: int) -> list[int]:
    """Order points so that each of the first ``num_centers`` is the one farthest from all covered ones.

    A chosen point covers too. Without covered points the first is the one nearest to the mean of all.

    Args:
        points_PC: candidates, at least one; Euclidean distances count.
        covered_LC: what is covered to begin with; may have no rows.
        num_centers: how many are chosen one after the other; the rest follows by falling distance.

    Returns:
        Indices of all P points; of equal distances the lowest index first.
    """
    mean_C = points_PC.mean(axis=0, dtype=np.float64).astype(np.float32)
    points = points_PC - mean_C  # short vectors: squares of large ones would lose the digits of small distances
    rows = np.arange(len(points))
    if not len(covered_LC):
        center = int(np.einsum("ij,ij->i", points, points).argmin())
        rows = np.concatenate([rows[center : center + 1], np.delete(rows, center)])  # of equal ones the first is taken
        points = points[rows]
    covered = covered_LC.reshape(-1, points.shape[1]) - mean_C
    found = spread(points, covered, np.zeros(len(points)), 1.0, max_taken=num_centers, distance="euclidean")
    is_left = np.ones(len(points), dtype=bool)
    is_left[found.order] = False
    rest = np.flatnonzero(is_left)
    rest = rest[np.argsort(-found.distance_S[rest], kind="stable")]
    return [int(rows[index]) for index in (*found.order, *rest)]
