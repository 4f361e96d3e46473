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

_BLOCK_IDS = 1 << 14


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
    values = candidates[column]  # alone: to sort the table would copy all of its columns
    if not values.index.is_monotonic_increasing:
        values = values.sort_index()
    return text_ids(values.sort_values(ascending=False, kind="stable").index)


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
    pool_digest = hashlib.sha256(f"{purpose}\n{seed}".encode())
    for start in range(0, len(ids), _BLOCK_IDS):  # as "\n".join of all of them
        pool_digest.update("".join(f"\n{image}" for image in ids[start : start + _BLOCK_IDS]).encode())
    salt = pool_digest.hexdigest()

    def digest(image: str) -> bytes:
        return hashlib.sha256(f"{salt}{image}".encode()).digest()

    key_P = np.empty(len(ids), dtype=np.uint64)  # the first 8 of 32 bytes
    for start in range(0, len(ids), _BLOCK_IDS):
        block = ids[start : start + _BLOCK_IDS]
        key_P[start : start + len(block)] = np.frombuffer(b"".join(map(digest, block)), dtype=">u8")[::4]
    order = key_P.argsort()
    if (np.diff(key_P[order]) == 0).any():
        return sorted(ids, key=digest)
    return [ids[index] for index in order.tolist()]
