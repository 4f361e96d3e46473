"""Which images of a delivery two annotators label, to measure how far people agree."""

import hashlib
from collections.abc import Sequence


def sample_for_double_annotation(image_ids: Sequence[str], double_annotation_frac: float, key: str) -> frozenset[str]:
    """A share of the images, and at least one where any are wanted; a repeated call draws the same.

    Args:
        image_ids: of the whole delivery.
        double_annotation_frac: ``provider.double_annotation_frac``.
        key: idempotency key of the delivery.
    """
    count = round(double_annotation_frac * len(image_ids)) or int(double_annotation_frac > 0)

    def sort_key(image_id: str) -> str:
        return hashlib.sha256(f"{key}/{image_id}".encode()).hexdigest()

    return frozenset(sorted(image_ids, key=sort_key)[:count])
