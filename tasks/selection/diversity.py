"""Order candidates so that a batch covers the pool: value and distance to what is covered already, greedily.

Shape letters: S candidates of a shortlist, L images that are covered from the start, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.selection.pool_view import Embeddings

NEAR_DUPLICATE_DISTANCE = 0.02
"""Cosine distance, 1 - cosine, up to which two images count as the same picture."""


@dataclass(frozen=True)
class SpreadOrder:
    """The order of a shortlist."""

    order: list[int]
    """Rows, best first, up to the wanted number; without near duplicates."""
    duplicates: list[int]
    """Near duplicates of rows in ``order`` or of covered images."""
    distance_S: NDArray[np.float64]
    """Cosine distance to the nearest covered or taken image; of a taken row, before it was taken."""


def spread(
    vectors_SD: Embeddings,
    covered_LD: Embeddings,
    value_S: NDArray[np.float64],
    diversity: float,
    *,
    max_taken: int | None = None,
) -> SpreadOrder:
    """Take the row with the largest ``(1 - diversity) * value + diversity * distance`` again and again.

    Distance is that to the nearest covered or taken image, divided by the largest one at the start. With diversity 1
    this is the greedy k-center rule (Sener and Savarese 2018, core-set); with 0 it is the order of the values.

    Args:
        vectors_SD: of length 1; a row of zeros (nothing is known) is at distance 1 from everything.
        covered_LD: of length 1.
        value_S: in [0, 1].
        diversity: share of the distance, [0, 1].
        max_taken: end of the order; None: all rows.
    """
    vectors = np.ascontiguousarray(vectors_SD, dtype=np.float32)
    distance_S = np.full(len(vectors), 2.0)
    for covered in covered_LD:  # one by one: all at once would need S x L numbers
        distance_S = np.minimum(distance_S, 1 - vectors @ covered.astype(np.float32))
    scale = max(float(distance_S.max(initial=0.0)), 1e-9)
    open_S = distance_S > NEAR_DUPLICATE_DISTANCE
    taken_at_S = distance_S.copy()
    order: list[int] = []
    while open_S.any() and (max_taken is None or len(order) < max_taken):
        gain_S = np.where(open_S, (1 - diversity) * value_S + diversity * distance_S / scale, -np.inf)
        best = int(gain_S.argmax())
        order.append(best)
        taken_at_S[best] = distance_S[best]
        distance_S = np.minimum(distance_S, 1 - vectors @ vectors[best])
        open_S &= distance_S > NEAR_DUPLICATE_DISTANCE
        open_S[best] = False
    not_taken_S = np.ones(len(vectors), dtype=bool)
    not_taken_S[order] = False
    taken_at_S[not_taken_S] = distance_S[not_taken_S]
    duplicate_S = not_taken_S & (distance_S <= NEAR_DUPLICATE_DISTANCE)
    return SpreadOrder(order, np.flatnonzero(duplicate_S).tolist(), taken_at_S)
