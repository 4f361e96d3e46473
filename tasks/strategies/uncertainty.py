"""The paper's rule: top-k of U, the weighted sum of the three metrics (METHOD sections 4 and 5, Eq. 15)."""

import pandas as pd

from tasks.strategies.base import descending

_ROUNDING = 1e-6


class Uncertainty:
    """Largest uncertainty first."""

    def order(self, candidates: pd.DataFrame, *, seed: int) -> list[str]:
        """Ids by falling uncertainty."""
        return descending(candidates, "uncertainty")

    def reason(self, candidate: pd.Series, *, place: int, of: int) -> str:
        """U, its place, and the three metrics with their weights in the same order."""
        mixed = sum(candidate[name] * candidate[f"w_{name}"] for name in ("confidence", "entropy", "overlap"))
        if abs(mixed - candidate.uncertainty) > _ROUNDING:  # dwa.mode activeteacher scores by other figures
            return f"uncertainty {candidate.uncertainty:.2f} (rank {place} of {of})"
        return (
            f"uncertainty {candidate.uncertainty:.2f} (rank {place} of {of}): "
            f"entropy {candidate.entropy:.2f}, overlap {candidate.overlap:.2f}, "
            f"confidence {candidate.confidence:.2f}; "
            f"weights {candidate.w_entropy:.2f}/{candidate.w_overlap:.2f}/{candidate.w_confidence:.2f}"
        )
