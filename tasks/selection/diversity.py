"""Order candidates so that a batch covers the pool: value and distance to what is covered already, greedily.

Shape letters: S candidates of a shortlist, L images that are covered from the start, D dimensions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.selection.embeddings import Embeddings

NEAR_DUPLICATE_DISTANCE = 0.02
"""Cosine distance, 1 - cosine, up to which two images count as the same picture."""
_MAX_DISTANCES_AT_ONCE = 1 << 24

Distance = Literal["cosine", "euclidean"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SpreadOrder:
    """The order of a shortlist."""

    order: list[int]
    """Rows, best first, up to the wanted number; without near duplicates."""
    duplicates: list[int]
    """Near duplicates of rows in ``order`` or of covered images."""
    distance_S: Floats
    """Distance to the nearest covered or taken image; of a taken row, before it was taken."""
    nearest_S: NDArray[np.int64]
    """Row of the taken image that is nearest, -1 - its row for a covered one; -1 - L where there is neither."""


def spread(
    vectors_SD: Embeddings,
    covered_LD: Embeddings,
    value_S: Floats,
    diversity: float,
    *,
    max_taken: int | None = None,
    distance: Distance = "cosine",
) -> SpreadOrder:
    """Take the row with the largest ``(1 - diversity) * value + diversity * distance`` again and again.

    Distance is that to the nearest covered or taken image, divided by the largest one at the start. With diversity 1
    this is the greedy k-center rule (Sener and Savarese 2018, core-set); with 0 it is the order of the values. Of equal
    rows the first is taken.

    Args:
        vectors_SD: of length 1 for ``cosine``; a row of zeros (nothing is known) is at distance 1 from everything.
        covered_LD: as ``vectors_SD``.
        value_S: in [0, 1].
        diversity: share of the distance, [0, 1].
        max_taken: end of the order; None: all rows.
        distance: ``cosine``: 1 - cosine, with near duplicates of covered and taken rows left out; ``euclidean``: half
            the squared distance, and no row counts as a duplicate.
    """
    space = _Space(np.ascontiguousarray(vectors_SD, dtype=np.float32), distance)
    covered_LD = covered_LD.reshape(-1, space.vectors_SD.shape[1])
    distance_S, nearest_S = space.to_nearest(covered_LD)
    scale = max(float(distance_S.max(initial=0.0)), 1e-9)
    least = NEAR_DUPLICATE_DISTANCE if distance == "cosine" else -np.inf
    open_S = distance_S > least
    taken_at_S = distance_S.copy()
    is_taken_S = np.zeros(len(distance_S), dtype=bool)
    order: list[int] = []
    while open_S.any() and (max_taken is None or len(order) < max_taken):
        gain_S = np.where(open_S, (1 - diversity) * value_S + diversity * distance_S / scale, -np.inf)
        best = int(gain_S.argmax())
        order.append(best)
        is_taken_S[best] = True
        taken_at_S[best] = distance_S[best]
        to_best_S = space.distances(space.vectors_SD[best : best + 1])[:, 0]
        is_nearer_S = (to_best_S < distance_S) & ~is_taken_S
        distance_S[is_nearer_S] = to_best_S[is_nearer_S]
        nearest_S[is_nearer_S] = best
        open_S &= distance_S > least
        open_S[best] = False
    taken_at_S[~is_taken_S] = distance_S[~is_taken_S]
    duplicate_S = ~is_taken_S & (distance_S <= least)
    return SpreadOrder(order, np.flatnonzero(duplicate_S).tolist(), taken_at_S, nearest_S)


class _Space:
    """Half the squared Euclidean distance; of vectors of length 1 that is 1 - cosine."""

    def __init__(self, vectors_SD: Embeddings, distance: Distance) -> None:
        self.vectors_SD = vectors_SD
        self._has_unit_length = distance == "cosine"  # rows of zeros count as such too
        self._half_S = self._half_squared_norm(vectors_SD)

    def distances(self, points_ND: Embeddings) -> NDArray[np.float32]:
        """From every row to each of N points, (S, N)."""
        points_ND = points_ND.astype(np.float32, copy=False)
        distances_SN = self.vectors_SD @ -points_ND.T
        distances_SN += self._half_S[:, None]
        distances_SN += self._half_squared_norm(points_ND)
        return distances_SN

    def to_nearest(self, covered_LD: Embeddings) -> tuple[Floats, NDArray[np.int64]]:
        """Distance to the nearest covered image, or the largest that can be; and -1 - its row.

        In blocks, since all at once would be S x L numbers.
        """
        nearest_S = np.full(len(self.vectors_SD), -1 - len(covered_LD), dtype=np.int64)
        if not len(covered_LD):
            return np.full(len(self.vectors_SD), 4.0 * float(self._half_S.max(initial=0.0))), nearest_S
        distance_S = np.full(len(self.vectors_SD), np.inf)
        step = max(1, _MAX_DISTANCES_AT_ONCE // max(len(self.vectors_SD), 1))
        for start in range(0, len(covered_LD), step):
            distances_SN = self.distances(covered_LD[start : start + step])
            row_S = distances_SN.argmin(axis=1)
            block_S = distances_SN[np.arange(len(row_S)), row_S]
            is_nearer_S = block_S < distance_S
            distance_S[is_nearer_S] = block_S[is_nearer_S]
            nearest_S[is_nearer_S] = -1 - (start + row_S[is_nearer_S])
        return distance_S, nearest_S

    def _half_squared_norm(self, vectors_ND: Embeddings) -> NDArray[np.float32]:
        if self._has_unit_length:
            return np.full(len(vectors_ND), 0.5, dtype=np.float32)
        return np.asarray(np.einsum("ij,ij->i", vectors_ND, vectors_ND) / 2)
