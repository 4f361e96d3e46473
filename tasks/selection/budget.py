"""Fill one batch: the cost of an image, and the images that fit in the budget."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.params.stages import BudgetParams
from tasks.selection.annotation_cost import AnnotationCost

_TOLERANCE = 1e-9  # ten times 0.1 must fit into 1


@dataclass(frozen=True)
class Batch:
    """What fits. A larger budget only appends to ``picked``."""

    selected: tuple[str, ...]
    """Image ids, first to label first; explored ones stand between the others."""
    random_picks: frozenset[str]
    """Those of ``picked`` that are the uniform draw."""


def expected_minutes(expected_boxes: pd.Series, cost_model: AnnotationCost) -> pd.Series:
    """Return the expected minutes per image (docs/method.md#eq-23)."""
    return cost_model.minutes_per_image + expected_boxes * cost_model.minutes_per_box


class ImageCosts(Mapping[str, float]):
    """What each image costs, by image id: two arrays, which take a fraction of the memory of a dict."""

    def __init__(self, costs: pd.Series) -> None:
        """Take over a column whose index are the image ids."""
        in_order = costs if costs.index.is_monotonic_increasing else costs.sort_index()
        self._ids = np.asarray(in_order.index, dtype=object)
        self._costs = in_order.to_numpy(dtype=np.float64)

    def __getitem__(self, image_id: str) -> float:
        row = int(np.searchsorted(self._ids, image_id))
        if row == len(self._ids) or self._ids[row] != image_id:
            raise KeyError(image_id)
        return float(self._costs[row])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def median(self) -> float:
        """Of all images; there must be one."""
        return float(np.median(self._costs))


def costs(candidates: pd.DataFrame, budget: BudgetParams) -> ImageCosts:
    """Return the cost of each image in the budget's unit, by image id.

    In boxes an image costs at least 1, however little was detected: someone has to look at it, and at a
    cost of 0 a batch would take in every image in which the teacher sees nothing.
    """
    if budget.unit == "images":
        return ImageCosts(pd.Series(1.0, index=candidates.index))
    column = candidates["expected_boxes"].clip(lower=1.0) if budget.unit == "boxes" else candidates["expected_minutes"]
    return ImageCosts(column)


def expected_batch_size(cost: ImageCosts, amount: float) -> int:
    """Return how many images of median cost the budget allows, at least 1 and at most all."""
    if not cost:
        return 1
    median = cost.median
    return max(1, min(len(cost), math.floor(amount / median) if median > 0 else len(cost)))


def num_random_picks(num_selected: int, random_frac: float) -> int:
    """Return how many of ``picked`` images are drawn uniformly: rounded to the nearest, halves up."""
    return math.floor(random_frac * num_selected + 0.5)


def fill_budget(
    ranking: Sequence[str],
    shuffled: Sequence[str],
    cost: Mapping[str, float],
    *,
    amount: float,
    random_frac: float,
) -> Batch:
    """Take images while their summed cost fits; the first one always, so that no round offers nothing.

    The first image that does not fit ends the batch, instead of being skipped for a cheaper one further
    down: skipping would fill batches with the images that hold least, and a larger budget could then drop
    images a smaller one had taken.

    The exploration share is counted in images in every unit. The draw is from the whole pool: an image
    that the strategy wanted too counts as explored, and the strategy's next one moves up.

    Args:
        ranking: all candidates, the strategy's first choice first.
        shuffled: the same ids in a uniform random order.
        cost: of each id, at least 0, in the unit of ``amount``.
        amount: the budget.
        random_frac: share of the batch that comes from ``shuffled``, [0, 1].
    """
    selected: list[str] = []
    spent = 0.0
    for image in _prefixes(ranking, shuffled, random_frac):
        spent += cost[image]
        if selected and spent > amount + _TOLERANCE:
            break
        selected.append(image)
    return Batch(tuple(selected), frozenset(shuffled[: num_random_picks(len(selected), random_frac)]))


def _prefixes(ranking: Sequence[str], shuffled: Sequence[str], random_frac: float) -> Iterator[str]:
    """Yield the image that extends the best batch of k - 1 images to that of k, for k = 1, 2, ..."""
    taken: set[str] = set()
    candidates = iter(ranking)
    for size in range(1, len(ranking) + 1):
        num_random = num_random_picks(size, random_frac)
        next_image = shuffled[num_random - 1] if num_random > num_random_picks(size - 1, random_frac) else None
        if next_image is None or next_image in taken:
            next_image = next(image for image in candidates if image not in taken)
        taken.add(next_image)
        yield next_image
