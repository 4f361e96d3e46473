"""Select by entropy alone, the usual baseline for weighted metrics."""

import pandas as pd

from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import sort_descending


class Entropy:
    """Largest normalized entropy first."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids by falling entropy."""
        return sort_descending(pool.candidates, "entropy")

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return the raw entropy in nats and the position."""
        return (
            f"entropy {candidate.entropy:.2f} (rank {position} of {num_candidates}): "
            f"{candidate.entropy_raw:.2f} nats over {candidate.num_boxes} boxes"
        )
