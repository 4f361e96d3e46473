"""What a selection strategy is, and the two ways of ordering that strategies share.

Candidates are one table with ``image_id`` as its index and the columns of ``schemas.SCORES`` and
``schemas.UNCERTAINTY``, plus ``expected_boxes`` and ``expected_minutes``; one row per unlabeled image.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

import pandas as pd


class Strategy(Protocol):
    """Says which candidate is worth a person's time first. Knows nothing of budgets."""

    def rank(self, candidates: pd.DataFrame, *, seed: int) -> list[str]:
        """All image ids, most wanted first; must not depend on the order of the rows."""
        ...

    def reason(self, candidate: pd.Series, *, position: int, num_candidates: int) -> str:
        """Why this candidate stands at ``position`` (1 is first) ``num_candidates`` so many, in words for the annotator."""
        ...


def sort_descending(candidates: pd.DataFrame, column: str) -> list[str]:
    """Ids by falling ``column``; ties by id, which says nothing about the image."""
    return [str(image) for image in candidates.sort_values([column, "image_id"], ascending=[False, True]).index]


def seeded_shuffle(image_ids: Iterable[str], *, seed: int, purpose: str) -> list[str]:
    """Ids in a random order that is the same for the same ids and seed, and new as soon as one id is gone.

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
    return sorted(ids, key=lambda image: hashlib.sha256(f"{salt}{image}".encode()).digest())
