"""Define the interface of an objective of selection. Shape letter: P candidates."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.selection.pool_view import PoolView

Values = NDArray[np.float64]


class Objective(Protocol):
    """What makes an image worth a label; a number for each candidate."""

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return how much each candidate is wanted, (P,) in the order of ``pool.candidates``; larger is more.

        Any scale: objectives are compared by rank. Must not depend on the order of the candidates.
        """
        ...
