"""Fill one batch: the cost of an image, and the images that fit in the budget."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tasks.params.stages import BudgetParams
from tasks.selection.annotation_cost import AnnotationCost
from tasks.selection.image_ids import text_ids

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


def costs(candidates: pd.DataFrame, budget: BudgetParams) -> dict[str, float]:
    """Return the cost of each image in the budget's unit, by image id.

    In boxes an image costs at least 1, however little was detected: someone has to look at it, and at a
    cost of 0 a batch would take in every image in which the teacher sees nothing.
    """
    if budget.unit == "images":
        return dict.fromkeys(text_ids(candidates.index), 1.0)
    column = candidates["expected_boxes"].clip(lower=1.0) if budget.unit == "boxes" else candidates["expected_minutes"]
    return dict(zip(text_ids(column.index), column.astype(float).tolist(), strict=True))


def expected_batch_size(cost: Mapping[str, float], amount: float) -> int:
    """Return how many images of median cost the budget allows, at least 1 and at most all."""
    if not cost:
        return 1
    median = statistics.median(cost.values())
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
