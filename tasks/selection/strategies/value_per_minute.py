"""Select the largest number of expected errors per expected minute of annotation (docs/method.md#selection)."""

import numpy as np
import pandas as pd

from tasks.selection.diversity import spread
from tasks.selection.embeddings import centered
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import sort_descending

_SHORTLIST_BATCHES = 4
_MIN_MINUTES = 1 / 60  # nobody opens an image in less than a second; at 0 minutes any image would be worth most


class ValuePerMinute:
    """Largest class-balanced value per minute first; uncertainty per minute where there is no value."""

    def __init__(self) -> None:
        """Start without near duplicates; ``rank`` finds them."""
        self._duplicates: frozenset[str] = frozenset()

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return ids by falling value per minute.

        Near duplicates of a better one, or of a labeled image, come after all others, so that a batch holds them only
        when nothing else is left. They are looked for among the first four batches, by the cosine of image embeddings.
        """
        per_minute = _worth(pool.candidates) / _minutes(pool.candidates)
        order = sort_descending(per_minute.to_frame("per_minute"), "per_minute")
        shortlist = order[: max(_SHORTLIST_BATCHES * pool.batch_size, 1)]
        if not shortlist:
            return order
        vectors, labeled = centered(pool.embeddings(shortlist), pool.labeled_embeddings)
        falling = np.linspace(1, 0, len(shortlist)).astype(np.float64)
        found = spread(vectors, labeled, falling, diversity=0.0)
        self._duplicates = frozenset(shortlist[row] for row in found.duplicates)
        others = [image for image in order if image not in self._duplicates]
        return [*others, *(image for image in order if image in self._duplicates)]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return value and minutes, or why uncertainty stands in for the value."""
        place = f"(rank {position} of {num_candidates})"
        minutes = f"{candidate.expected_minutes:.2f} minutes"
        copy = "; much like another image" if str(candidate.image_id) in self._duplicates else ""
        if pd.isna(candidate.value):
            per_minute = candidate.uncertainty / max(candidate.expected_minutes, _MIN_MINUTES)
            why = f"uncertainty {candidate.uncertainty:.2f} in {minutes}, as the value of images is not known yet"
            return f"uncertainty per minute {per_minute:.2f} {place}: {why}{copy}"
        per_minute = candidate.value / max(candidate.expected_minutes, _MIN_MINUTES)
        errors = (
            f"{candidate.value:.2f} errors expected, rare classes counted more, {candidate.expected_misses:.2f} misses"
        )
        return f"value per minute {per_minute:.2f} {place}: {errors}, in {minutes}{copy}"


def _worth(candidates: pd.DataFrame) -> pd.Series:
    """Return the value of each image; its uncertainty where any has no value: the two are not comparable."""
    column = "uncertainty" if candidates["value"].isna().any() else "value"
    worth: pd.Series = candidates[column].astype(float)
    return worth


def _minutes(candidates: pd.DataFrame) -> pd.Series:
    minutes: pd.Series = candidates["expected_minutes"].clip(lower=_MIN_MINUTES)
    return minutes
