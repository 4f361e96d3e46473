"""Combine objectives and diversity into one order (docs/method.md#objectives)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from detectron_ext.uncertainty_metrics import normalize
from tasks.selection.diversity import SpreadOrder, spread
from tasks.selection.objectives.registry import DIVERSITY, OBJECTIVES
from tasks.selection.pool_view import PoolView

_SHORTLIST_BATCHES = 4
_MAX_POOL = 100_000  # with diversity alone; ids are digests, so the first of them are a uniform draw
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
        table = pd.DataFrame(columns, index=pool.image_ids).sort_index()
        others = sum(weight for name, weight in self._weights.items() if name != DIVERSITY)
        table["value"] = sum(table[name] * self._weights[name] / others for name in columns) if columns else 0.0
        falling = np.argsort(-table["value"].to_numpy(), kind="stable")  # of equal values the lower id first
        order = table.index[falling].tolist()
        if DIVERSITY in self._weights:
            order = self._spread(pool, table, order)
        self._ranked = table
        return order

    def shares(self, image_ids: Sequence[str]) -> dict[str, float]:
        """Return how much of the value of some ranked images each objective gave; their sum is 1 where there is any."""
        given = {
            name: float(np.nansum(self._ranked.loc[list(image_ids), name] * weight))
            for name, weight in self._weights.items()
        }
        total = sum(given.values())
        return {name: round(value / total, 4) if total else 0.0 for name, value in given.items()}

    @property
    def num_duplicates(self) -> int:
        """Candidates that were put last because they look like a labeled or taken image."""
        return len(self._duplicates)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the objectives, with sum 1."""
        return self._weights

    def _spread(self, pool: PoolView, table: pd.DataFrame, order: list[str]) -> list[str]:
        value_only = [name for name in self._weights if name != DIVERSITY]
        size = max(_SHORTLIST_BATCHES * pool.batch_size, 1) if value_only else _MAX_POOL
        shortlist = order[:size]
        vectors, labeled = pool.content
        found: SpreadOrder = spread(
            vectors[pool.image_ids.get_indexer(pd.Index(shortlist))],
            labeled,
            table.loc[shortlist, "value"].to_numpy(),
            self._weights[DIVERSITY],
            max_taken=_SHORTLIST_BATCHES * pool.batch_size,
        )
        table[DIVERSITY] = np.nan
        table.loc[shortlist, DIVERSITY] = found.distance_S
        taken = [shortlist[row] for row in found.order]
        self._duplicates = frozenset(shortlist[row] for row in found.duplicates)
        placed = self._duplicates.union(taken)
        rest = [image for image in order if image not in placed]
        return [*taken, *rest, *(image for image in shortlist if image in self._duplicates)]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return the objectives that count most for this image, each with its value in [0, 1]."""
        row = self._ranked.loc[str(candidate.image_id)]
        known = [name for name in self._weights if not np.isnan(row[name])]
        strongest = sorted(known, key=lambda name: -self._weights[name] * row[name])[:_REASON_PARTS]
        parts = ", ".join(f"{name} {row[name]:.2f}" for name in strongest)
        copy = "; much like another image" if str(candidate.image_id) in self._duplicates else ""
        return f"{self._name} (rank {position} of {num_candidates}): {parts}{copy}"
