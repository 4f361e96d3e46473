"""Which images of a delivery two annotators label, to measure how far people agree."""

import hashlib
from collections.abc import Sequence


def drawn_for_two(image_ids: Sequence[str], consensus_frac: float, key: str) -> frozenset[str]:
    """A share of the images, and at least one where any are wanted; a repeated call draws the same.

    Args:
        image_ids: of the whole delivery.
        consensus_frac: ``provider.consensus_frac``.
        key: idempotency key of the delivery.
    """
    count = round(consensus_frac * len(image_ids)) or int(consensus_frac > 0)

    def lot(image_id: str) -> str:
        return hashlib.sha256(f"{key}/{image_id}".encode()).hexdigest()

    return frozenset(sorted(image_ids, key=lot)[:count])
