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
        """Return U, the position, and the metrics with their weights in the same order."""
        doubt, w_doubt = candidate.get("objectness_entropy", 0.0), candidate.get("w_objectness_entropy", 0.0)
        weighted_sum = doubt * w_doubt
        weighted_sum += sum(candidate[name] * candidate[f"w_{name}"] for name in ("confidence", "entropy", "overlap"))
        if abs(weighted_sum - candidate.uncertainty) > _ROUNDING:  # dwa.mode activeteacher scores by other figures
            return f"uncertainty {candidate.uncertainty:.2f} (rank {position} of {num_candidates})"
        more, w_more = (f", objectness entropy {doubt:.2f}", f"/{w_doubt:.2f}") if w_doubt else ("", "")
        return (
            f"uncertainty {candidate.uncertainty:.2f} (rank {position} of {num_candidates}): "
            f"entropy {candidate.entropy:.2f}, overlap {candidate.overlap:.2f}, "
            f"confidence {candidate.confidence:.2f}{more}; "
            f"weights {candidate.w_entropy:.2f}/{candidate.w_overlap:.2f}/{candidate.w_confidence:.2f}{w_more}"
        )
