"""Classification doubt alone: the usual baseline that any mixture of metrics has to beat."""

import pandas as pd

from tasks.strategies.base import descending


class Entropy:
    """Largest normalised entropy first."""

    def order(self, candidates: pd.DataFrame, *, seed: int) -> list[str]:
        """Ids by falling entropy."""
        return descending(candidates, "entropy")

    def reason(self, candidate: pd.Series, *, place: int, of: int) -> str:
        """The entropy as it is in nats, and its place."""
        return (
            f"entropy {candidate.entropy:.2f} (rank {place} of {of}): "
            f"{candidate.entropy_raw:.2f} nats over {candidate.num_boxes} boxes"
        )
