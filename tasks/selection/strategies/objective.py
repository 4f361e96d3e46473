"""Combine objectives and diversity into one order (docs/method.md#objectives)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from detectron_ext.uncertainty_metrics import normalize
from tasks.selection.diversity import SpreadOrder, spread
from tasks.selection.objectives.base import described
from tasks.selection.objectives.registry import DIVERSITY, OBJECTIVES
from tasks.selection.pool_view import PoolView

_SHORTLIST_BATCHES = 4
_REASON_PARTS = 3


class ObjectiveStrategy:
    """Largest weighted mean of objectives first, spread over the pool where diversity has a weight."""

    def __init__(self, name: str, weights: Mapping[str, float]) -> None:
        """Keep the weights of the objectives; at least one is positive."""
        self._name = name
        total = sum(weights.values())
        self._weights = {objective: weight / total for objective, weight in weights.items() if weight > 0}
        self._ranked = pd.DataFrame()
        self._duplicates: frozenset[str] = frozenset()

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return all ids, best first.

        Each objective is put on [0, 1] by rank over the candidates. With diversity, the best of them by the other
        objectives, four batches long, are ordered by value and distance; near duplicates of a taken or labeled image
        come after all others, so that a batch holds them only when nothing else is left.
        """
        columns = {
            name: normalize(OBJECTIVES[name].values(pool, seed=seed), "quantile")
            for name in self._weights
            if name != DIVERSITY
        }
        index = pd.Index([str(image) for image in pool.candidates.index], name="image_id")
        table = pd.DataFrame(columns, index=index).sort_index()
        others = sum(weight for name, weight in self._weights.items() if name != DIVERSITY)
        table["value"] = sum(table[name] * self._weights[name] / others for name in columns) if columns else 0.0
        order = list(table.sort_values(["value", "image_id"], ascending=[False, True]).index)
        if DIVERSITY in self._weights:
            order = self._spread(pool, table, order)
        self._ranked = table
        return order

    def _spread(self, pool: PoolView, table: pd.DataFrame, order: list[str]) -> list[str]:
        value_only = [name for name in self._weights if name != DIVERSITY]
        size = max(_SHORTLIST_BATCHES * pool.batch_size, 1) if value_only else len(order)
        shortlist = order[:size]
        vectors, labeled = described(pool)
        row_of = {str(image): row for row, image in enumerate(pool.candidates.index)}
        found: SpreadOrder = spread(
            vectors[[row_of[image] for image in shortlist]],
            labeled,
            table.loc[shortlist, "value"].to_numpy(),
            self._weights[DIVERSITY],
            max_taken=_SHORTLIST_BATCHES * pool.batch_size,
        )
        table[DIVERSITY] = np.nan
        table.loc[shortlist, DIVERSITY] = found.distance_S
        taken = [shortlist[row] for row in found.order]
        self._duplicates = frozenset(shortlist[row] for row in found.duplicates)
        rest = [image for image in order if image not in self._duplicates and image not in set(taken)]
        return [*taken, *rest, *(image for image in order if image in self._duplicates)]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return the objectives that count most for this image, each with its value in [0, 1]."""
        row = self._ranked.loc[str(candidate.image_id)]
        known = [name for name in self._weights if not np.isnan(row[name])]
        strongest = sorted(known, key=lambda name: -self._weights[name] * row[name])[:_REASON_PARTS]
        parts = ", ".join(f"{name} {row[name]:.2f}" for name in strongest)
        copy = "; much like another image" if str(candidate.image_id) in self._duplicates else ""
        return f"{self._name} (rank {position} of {num_candidates}): {parts}{copy}"
