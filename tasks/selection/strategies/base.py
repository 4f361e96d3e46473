"""Define the interface of a selection strategy, and the two orders that strategies share.

Candidates are the rows of ``PoolView.candidates``, one per unlabeled image.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import pandas as pd

from tasks.selection.image_ids import text_ids
from tasks.selection.pool_view import PoolView


class Strategy(Protocol):
    """Order in which candidates are labeled. Independent of the budget."""

    def rank(self, pool: PoolView, *, seed: int) -> list[str]:
        """Return the ids of all candidates, best first; must not depend on the order of the rows."""
        ...

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Say to the annotator why this candidate is at ``position`` (1 is first) of ``num_candidates``."""
        ...


def sort_descending(candidates: pd.DataFrame, column: str) -> list[str]:
    """Return ids by falling ``column``; ties by id, which is independent of the content."""
    return text_ids(candidates.sort_values([column, "image_id"], ascending=[False, True]).index)


def seeded_shuffle(image_ids: Iterable[str], *, seed: int, purpose: str) -> list[str]:
    """Return ids in a random order that depends on the set of ids and the seed only.

    The digest of the ids takes the place of a round number: labels change the pool, so each round draws
    anew, and a repeated round repeats its draw. Hashes, not a
    generator: no release of a library can change them.

    Args:
        image_ids: whole pool, in any order.
        seed: ``seed`` of params.yaml.
        purpose: draws for different purposes are independent of each other.
    """
    ids = sorted(image_ids)
    salt = hashlib.sha256("\n".join([purpose, str(seed), *ids]).encode()).hexdigest()
    digests = (hashlib.sha256(f"{salt}{image}".encode()).digest() for image in ids)
    order = np.fromiter(digests, dtype="S32", count=len(ids)).argsort()
    return [ids[index] for index in order.tolist()]
