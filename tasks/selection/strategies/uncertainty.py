"""Select the largest U, the weighted sum of the three metrics (docs/method.md#eq-15); the rule of the paper."""

import pandas as pd

from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import sort_descending

_ROUNDING = 1e-6


class Uncertainty:
    """Largest uncertainty first."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids by falling uncertainty."""
        return sort_descending(pool.candidates, "uncertainty")

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return U, the position, and the three metrics with their weights in the same order."""
        weighted_sum = sum(candidate[name] * candidate[f"w_{name}"] for name in ("confidence", "entropy", "overlap"))
        if abs(weighted_sum - candidate.uncertainty) > _ROUNDING:  # dwa.mode activeteacher scores by other figures
            return f"uncertainty {candidate.uncertainty:.2f} (rank {position} of {num_candidates})"
        return (
            f"uncertainty {candidate.uncertainty:.2f} (rank {position} of {num_candidates}): "
            f"entropy {candidate.entropy:.2f}, overlap {candidate.overlap:.2f}, "
            f"confidence {candidate.confidence:.2f}; "
            f"weights {candidate.w_entropy:.2f}/{candidate.w_overlap:.2f}/{candidate.w_confidence:.2f}"
        )
