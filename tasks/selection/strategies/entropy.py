"""Classification doubt alone: the usual baseline that any mixture of metrics has to beat."""

import pandas as pd

from tasks.selection.strategies.base import sort_descending


class Entropy:
    """Largest normalized entropy first."""

    def rank(self, candidates: pd.DataFrame, *, seed: int) -> list[str]:
        """Ids by falling entropy."""
        return sort_descending(candidates, "entropy")

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """The entropy as it is in nats, and its place."""
        return (
            f"entropy {candidate.entropy:.2f} (rank {position} of {num_candidates}): "
            f"{candidate.entropy_raw:.2f} nats over {candidate.num_boxes} boxes"
        )
