"""Filling one batch: what an image will cost, and how far down the order the budget reaches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tasks.annotation_cost import AnnotationCost
from tasks.sections import BudgetParams

_TOLERANCE = 1e-9  # ten times 0.1 must fit into 1


@dataclass(frozen=True)
class Batch:
    """What fits. A larger budget only appends to ``picked``."""

    picked: tuple[str, ...]
    """Image ids, first to label first; explored ones stand between the others."""
    explored: frozenset[str]
    """Those of ``picked`` that are the uniform draw."""


def expected_minutes(expected_boxes: pd.Series, pace: AnnotationCost) -> pd.Series:
    """Minutes a person will need per image: opening it, and each box."""
    return pace.minutes_per_image + expected_boxes * pace.minutes_per_box


def costs(candidates: pd.DataFrame, budget: BudgetParams) -> dict[str, float]:
    """What each image takes out of the budget, in the budget's unit, by image id.

    In boxes an image costs at least 1, however little was detected: someone has to look at it, and at a
    cost of 0 a batch would take in every image in which the teacher sees nothing.
    """
    if budget.unit == "images":
        return dict.fromkeys((str(image) for image in candidates.index), 1.0)
    column = candidates["expected_boxes"].clip(lower=1.0) if budget.unit == "boxes" else candidates["expected_minutes"]
    return {str(image): float(cost) for image, cost in column.items()}


def explored_of(picked: int, explore_frac: float) -> int:
    """How many of ``picked`` images are the uniform draw: rounded to the nearest, halves up."""
    return math.floor(explore_frac * picked + 0.5)


def fill(
    order: Sequence[str],
    draw: Sequence[str],
    cost: Mapping[str, float],
    *,
    amount: float,
    explore_frac: float,
) -> Batch:
    """Take images while their summed cost fits; the first one always, so that no round offers nothing.

    The first image that does not fit ends the batch, instead of being skipped for a cheaper one further
    down: skipping would fill batches with the images that hold least, and a larger budget could then drop
    images a smaller one had taken.

    The exploration share is counted in images, whatever the unit. The draw is from the whole pool: an image
    that the strategy wanted too counts as explored, and the strategy's next one moves up.

    Args:
        order: all candidates, the strategy's first choice first.
        draw: the same ids in a uniform random order.
        cost: of each id, at least 0, in the unit of ``amount``.
        amount: the budget.
        explore_frac: share of the batch that comes from ``draw``, [0, 1].
    """
    picked: list[str] = []
    spent = 0.0
    for image in _growing(order, draw, explore_frac):
        spent += cost[image]
        if picked and spent > amount + _TOLERANCE:
            break
        picked.append(image)
    return Batch(tuple(picked), frozenset(draw[: explored_of(len(picked), explore_frac)]))


def _growing(order: Sequence[str], draw: Sequence[str], explore_frac: float) -> Iterator[str]:
    """The image that turns the best batch of k - 1 into the best batch of k, for k = 1, 2, ..."""
    taken: set[str] = set()
    wanted = iter(order)
    for size in range(1, len(order) + 1):
        explored = explored_of(size, explore_frac)
        newcomer = draw[explored - 1] if explored > explored_of(size - 1, explore_frac) else None
        if newcomer is None or newcomer in taken:
            newcomer = next(image for image in wanted if image not in taken)
        taken.add(newcomer)
        yield newcomer
