"""Want images like those on which the teacher was wrong."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tasks.selection.earlier_picks import EarlierPick
from tasks.selection.objectives.base import Values
from tasks.selection.pool_view import PoolView

_NEIGHBORS = 10


class Failures:
    """Loss that labels found on the nearest earlier picks, weighted by the square of a positive cosine.

    The loss is that of classes and places together, each divided by its mean over the images of the batch, since those
    of two teachers have different scales.
    """

    def values(self, pool: PoolView, *, seed: int) -> Values:
        """Return the mean over the ten nearest earlier picks, (P,); 0 where nothing like the image was picked yet."""
        candidates, labeled = pool.content
        loss_of = _relative_losses(pool.earlier_picks)
        rows = pd.Index(pool.labeled_image_ids).get_indexer(pd.Index(list(loss_of)))
        is_known = (rows >= 0) & (len(pool.labeled_image_ids) == len(labeled))
        if not is_known.any():
            return np.zeros(len(candidates))
        from sklearn.neighbors import NearestNeighbors  # seconds to import, so only where it is used

        known = labeled[rows[is_known]]
        losses = np.array(list(loss_of.values()))[is_known]
        count = min(_NEIGHBORS, len(known))
        nearest = NearestNeighbors(n_neighbors=count).fit(known).kneighbors(candidates, return_distance=False)
        total = np.zeros(len(candidates))
        for column in nearest.T:  # one neighbor after the other: all at once would copy the pool ten times
            cosine = np.einsum("ij,ij->i", candidates, known[column]).astype(np.float64)
            total += np.maximum(cosine, 0) ** 2 * losses[column]
        return total / count


def _relative_losses(picks: Sequence[EarlierPick]) -> dict[str, float]:
    """Return the loss of each pick relative to its batch, by image id."""
    of_batch: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for pick in picks:
        of_batch[pick.batch].append((pick.classification_loss, pick.localization_loss))
    scale = {batch: np.maximum(np.mean(losses, axis=0), 1e-9) for batch, losses in of_batch.items()}
    return {
        pick.image_id: float(
            pick.classification_loss / scale[pick.batch][0] + pick.localization_loss / scale[pick.batch][1]
        )
        for pick in picks
    }
