"""A selection strategy of one's own: the most uncertainty for each minute of annotation."""

from typing import Any

import pandas as pd

from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import sort_descending


class UncertaintyPerMinute:
    """Largest ratio of uncertainty to expected annotation minutes first."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return all image ids by falling ratio, ties by id; ``seed`` is for strategies that draw at random."""
        return sort_descending(pool.candidates.assign(ratio=_ratio(pool.candidates)), "ratio")

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return the ratio, its rank and its two parts, for the annotator."""
        return (
            f"uncertainty per minute {_ratio(candidate):.2f} (rank {position} of {num_candidates}): "
            f"uncertainty {candidate['uncertainty']:.2f}, {candidate['expected_minutes']:.1f} minutes"
        )


def _ratio(candidates: Any) -> Any:
    """Of a table, a column; of a row, a number."""
    return candidates["uncertainty"] / candidates["expected_minutes"]
