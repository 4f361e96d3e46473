"""Choose the images of a delivery that two annotators label, to measure inter-annotator agreement."""

import hashlib
from collections.abc import Sequence


def sample_for_double_annotation(image_ids: Sequence[str], double_annotation_frac: float, key: str) -> frozenset[str]:
    """Sample a share of the images, at least one where the share is above 0; a repeated call samples the same.

    Args:
        image_ids: all images of the delivery.
        double_annotation_frac: ``provider.double_annotation_frac``, range [0, 1].
        key: idempotency key of the delivery, the seed of the sample.
    """
    count = round(double_annotation_frac * len(image_ids)) or int(double_annotation_frac > 0)

    def sort_key(image_id: str) -> str:
        return hashlib.sha256(f"{key}/{image_id}".encode()).hexdigest()

    return frozenset(sorted(image_ids, key=sort_key)[:count])
