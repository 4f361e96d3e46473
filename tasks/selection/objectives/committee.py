"""Want images on which two detectors disagree."""

import numpy as np

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView


class Committee:
    """Disagreement of the teacher and a second detector about places and about classes (docs/method.md#committee).

    What one of them sees and the other does not counts in full, about both.
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the sum of both for each candidate, (P,)."""
        return np.asarray(
            pool.column_of_detections("box_disagreement") + pool.column_of_detections("class_disagreement")
        )
