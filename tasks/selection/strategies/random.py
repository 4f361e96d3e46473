"""Select every image with equal probability: the control against which a gain is claimed (docs/method.md#claims)."""

import pandas as pd

from tasks.selection.image_ids import text_ids
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import seeded_shuffle


class Random:
    """A uniform random order."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids in an order that depends only on the seed and the set of ids."""
        return seeded_shuffle(text_ids(pool.candidates.index), seed=seed, purpose="random")

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Say that the draw was independent of the image."""
        return f"random: uniform draw from {num_candidates} images"
