"""Select by diversity alone: k-center greedy on image embeddings, with the labeled images as covered.

Sener and Savarese, Active learning for convolutional neural networks: a core-set approach, ICLR 2018; the greedy
version.
Shape letters: P candidates, L labeled images, C channels of an embedding.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.selection.pool_view import PoolView

_MAX_CENTERS = 4096
"""So many images are chosen one after the other; a batch is smaller, and each choice passes over the pool once."""

Floats = NDArray[np.float64]


class Coreset:
    """The image farthest from everything labeled or chosen before it first."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids in the order of greedy k-center; ties by id.

        After the first 4096 come the others, farthest from the covered ones first.
        """
        ids = sorted(str(image) for image in pool.candidates.index)
        order = greedy_k_center(
            np.asarray(pool.embeddings(ids), dtype=np.float64),
            np.asarray(pool.labeled_embeddings, dtype=np.float64),
            num_centers=min(len(ids), _MAX_CENTERS),
        )
        return [ids[index] for index in order]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Say what the position rests on."""
        return f"diversity: number {position} of {num_candidates} by distance to what is labeled or chosen before"


def greedy_k_center(points_PC: Floats, covered_LC: Floats, *, num_centers: int) -> list[int]:
    """Order points so that each of the first ``num_centers`` is the one farthest from all covered ones.

    A chosen point covers too. Without covered points the first is the one nearest to the mean of all.

    Args:
        points_PC: candidates.
        covered_LC: what is covered to begin with; may have no rows.
        num_centers: how many are chosen one after the other, at most P; the rest follows by falling distance.

    Returns:
        Indices of all P points; of equal distances the lowest index first.
    """
    if not len(points_PC):
        return []
    chosen: list[int] = []
    if len(covered_LC):
        distance_P: Floats = np.full(len(points_PC), np.inf, dtype=np.float64)
        for covered_C in covered_LC:
            distance_P = np.minimum(distance_P, _squared_distances(points_PC, covered_C))
    else:
        center = int(np.argmin(_squared_distances(points_PC, points_PC.mean(axis=0))))
        chosen.append(center)
        distance_P = _squared_distances(points_PC, points_PC[center])
        distance_P[center] = -1.0
    while len(chosen) < num_centers:
        center = int(np.argmax(distance_P))
        chosen.append(center)
        distance_P = np.minimum(distance_P, _squared_distances(points_PC, points_PC[center]))
        distance_P[chosen] = -1.0  # below the 0 of a copy that is not chosen yet
    rest = np.argsort(-distance_P, kind="stable")[: len(points_PC) - len(chosen)]
    return [*chosen, *rest.tolist()]


def _squared_distances(points_PC: Floats, point_C: Floats) -> Floats:
    return np.asarray(((points_PC - point_C) ** 2).sum(axis=1))
