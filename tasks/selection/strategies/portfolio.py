"""Divide the batch among several strategies, by what a minute of each has brought (docs/method.md#portfolio)."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import Strategy
from tasks.selection.thompson import LOSS_KINDS, allocate, beliefs

_ALLOCATED_BATCHES = 4
"""So many batches are divided; what follows is in the order of the first strategy."""


class Portfolio:
    """The next image of one strategy after the other; whose turn it is, is drawn anew for each place."""

    def __init__(self, arms: Mapping[str, Strategy]) -> None:
        """Keep the strategies by name; the first one also orders what the batch will hardly reach."""
        self.arms = dict(arms)
        self._arm_of: dict[str, str] = {}
        self._place_of: dict[str, int] = {}
        self._shares: dict[str, Any] = {}

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return all ids. Draws depend on the seed, the set of ids and the answers so far."""
        picks = pool.earlier_picks
        known = {kind: beliefs(picks, list(self.arms), kind) for kind in LOSS_KINDS}
        num_places = min(len(pool.image_ids), _ALLOCATED_BATCHES * pool.batch_size)
        turns = allocate(known, num_places, _generator(pool, seed))
        orders = {name: arm.rank(pool, seed=seed) for name, arm in self.arms.items()}
        first = next(iter(self.arms))
        self._arm_of, self._place_of = {}, {}
        waiting = {name: enumerate(order, start=1) for name, order in orders.items()}
        for name in turns:
            place, image = next((place, image) for place, image in waiting[name] if image not in self._arm_of)
            self._arm_of[image], self._place_of[image] = name, place
        taken = list(self._arm_of)
        rest = []
        for place, image in enumerate(orders[first], start=1):
            if image not in self._arm_of:
                rest.append(image)
                self._arm_of[image], self._place_of[image] = first, place
        counts = Counter(turns[: pool.batch_size])
        self._shares = {
            name: {"share": round(counts[name] / max(counts.total(), 1), 4)}
            | {
                kind: {"mean": round(known[kind][name].mean, 4), "std": round(known[kind][name].std, 4)}
                for kind in LOSS_KINDS
            }
            | {"num_images": known[LOSS_KINDS[0]][name].num_images}
            for name in self.arms
        }
        return [*taken, *rest]

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Return whose turn it was, and that strategy's own reason."""
        image = str(candidate.image_id)
        arm = self._arm_of[image]
        own = self.arms[arm].reason(candidate, position=self._place_of[image], num_candidates=num_candidates)
        return f"portfolio (rank {position} of {num_candidates}), turn of {arm}: {own}"

    def picked_by(self, image_id: str) -> str:
        """Return the strategy that an image was taken from."""
        return self._arm_of[image_id]

    @property
    def shares(self) -> dict[str, Any]:
        """Share of a batch of the expected size that each strategy gets, and what is believed of its rates."""
        return self._shares


def _generator(pool: PoolView, seed: int) -> np.random.Generator:
    """Draw anew when labels change the pool; repeat the draw of a repeated round."""
    digest = hashlib.sha256("\n".join(["portfolio", str(seed), *sorted(pool.image_ids)]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))
