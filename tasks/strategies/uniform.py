"""Every image equally likely: the control against which a gain is claimed (METHOD section 7)."""

import pandas as pd

from tasks.strategies.base import drawn


class Uniform:
    """A uniform random order."""

    def order(self, candidates: pd.DataFrame, *, seed: int) -> list[str]:
        """Ids in an order that depends on nothing but the seed and the set of ids."""
        return drawn((str(image) for image in candidates.index), seed=seed, purpose="random")

    def reason(self, candidate: pd.Series, *, place: int, of: int) -> str:
        """Says that nothing about the image mattered."""
        return f"random: uniform draw from {of} images"
