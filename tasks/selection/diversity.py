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
    cover = _Cover(space, covered_LD.reshape(-1, space.vectors_SD.shape[1]))
    scale = max(float(cover.distance_S.max(initial=0.0)), 1e-9)
    least = NEAR_DUPLICATE_DISTANCE if distance == "cosine" else -np.inf

    def gain(rows_R: NDArray[np.int64]) -> Floats:
        """Gain of rows that may be taken: not of taken ones, nor of near duplicates."""
        distance_R = cover.distance_S[rows_R]
        may_take_R = ~cover.is_taken_S[rows_R] & (distance_R > least)
        return np.where(may_take_R, (1 - diversity) * value_S[rows_R] + diversity * distance_R / scale, -np.inf)

    all_rows = np.arange(len(cover.distance_S))
    gain_S = gain(all_rows)
    while len(gain_S) and gain_S.max() > -np.inf and (max_taken is None or len(cover.order) < max_taken):
        best = int(gain_S.argmax())
        if cover.is_current(best):
            cover.take(best)
            gain_S[best] = -np.inf
            continue
        # A gain only falls while images are taken, so one that is out of date is an upper bound (Minoux 1978): rows
        # whose bound is below the gain of this one need not be compared with what was taken since.
        cover.update(np.array([best]))
        gain_S[best] = gain(np.array([best]))[0]
        rivals = np.flatnonzero((gain_S > gain_S[best]) & cover.is_stale_S)
        cover.update(rivals)
        gain_S[rivals] = gain(rivals)
    cover.update(all_rows[~cover.is_taken_S])
    duplicate_S = ~cover.is_taken_S & (cover.distance_S <= least)
    return SpreadOrder(cover.order, np.flatnonzero(duplicate_S).tolist(), cover.distance_S, cover.nearest_S)


class _Cover:
    """What is covered, and how far each row is from it: as far as its row was brought up to date."""

    def __init__(self, space: "_Space", covered_LD: Embeddings) -> None:
        self._space = space
        self.order: list[int] = []
        self.distance_S, self.nearest_S = space.to_nearest(covered_LD)
        self.is_taken_S = np.zeros(len(self.distance_S), dtype=bool)
        self._num_seen_S = np.zeros(len(self.distance_S), dtype=np.int64)

    @property
    def is_stale_S(self) -> NDArray[np.bool_]:
        """Rows that were not compared with all taken ones."""
        return self._num_seen_S < len(self.order)

    def is_current(self, row: int) -> bool:
        """Whether a row was compared with all taken ones."""
        return bool(self._num_seen_S[row] == len(self.order))

    def take(self, row: int) -> None:
        """Take a row, which keeps its distance."""
        self.order.append(row)
        self.is_taken_S[row] = True

    def update(self, rows_R: NDArray[np.int64]) -> None:
        """Compare rows that are not taken with the taken ones that they were not compared with; the first of equals."""
        step = max(1, _MAX_DISTANCES_AT_ONCE // max(len(self.order), 1))
        for start in range(0, len(rows_R), step):
            self._update(rows_R[start : start + step])

    def _update(self, rows_R: NDArray[np.int64]) -> None:
        first = int(self._num_seen_S[rows_R].min())
        taken = np.array(self.order[first:], dtype=np.int64)
        if len(taken):
            distances_RN = self._space.distances(self._space.vectors_SD[taken], rows_R)
            distances_RN[np.arange(len(taken))[None, :] < (self._num_seen_S[rows_R] - first)[:, None]] = np.inf
            column_R = distances_RN.argmin(axis=1)
            found_R = distances_RN[np.arange(len(rows_R)), column_R]
            is_nearer_R = found_R < self.distance_S[rows_R]
            nearer = rows_R[is_nearer_R]
            self.distance_S[nearer] = found_R[is_nearer_R]
            self.nearest_S[nearer] = taken[column_R[is_nearer_R]]
        self._num_seen_S[rows_R] = len(self.order)


class _Space:
    """Half the squared Euclidean distance; of vectors of length 1 that is 1 - cosine."""

    def __init__(self, vectors_SD: Embeddings, distance: Distance) -> None:
        self.vectors_SD = vectors_SD
        self._has_unit_length = distance == "cosine"  # rows of zeros count as such too
        self._half_S = self._half_squared_norm(vectors_SD)

    def distances(self, points_ND: Embeddings, rows_R: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """From rows, all by default, to each of N points, (R, N)."""
        points_ND = points_ND.astype(np.float32, copy=False)
        distances_RN = (self.vectors_SD if rows_R is None else self.vectors_SD[rows_R]) @ -points_ND.T
        distances_RN += (self._half_S if rows_R is None else self._half_S[rows_R])[:, None]
        distances_RN += self._half_squared_norm(points_ND)
        return distances_RN

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
