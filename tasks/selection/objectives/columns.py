"""Want what a column of the candidates says."""

import numpy as np

from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView


class Column:
    """A column of the candidates, or its negative."""

    def __init__(self, name: str, *, sign: int = 1) -> None:
        """Keep the column; ``sign`` -1 wants small values."""
        self._name, self._sign = name, sign

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the column, (P,)."""
        return self._sign * pool.candidates[self._name].to_numpy(dtype=np.float64)
