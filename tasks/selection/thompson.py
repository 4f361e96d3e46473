"""Divide a batch among strategies by Thompson sampling on the loss that a minute of each has found.

docs/method.md#portfolio; Thompson (1933), Chapelle and Li (2011). A pure function of the answers so far: no state.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.selection.earlier_picks import EarlierPick

LossKind = Literal["classification", "localization"]
LOSS_KINDS: tuple[LossKind, ...] = ("classification", "localization")
BATCH_DISCOUNT = 0.8
"""Weight of an answer, for each batch that came after it: what a strategy finds changes with the teacher."""
PRIOR_IMAGES = 4.0
"""A strategy begins as if so many images of mean length had found what the others do, ...."""
PRIOR_STD = 1.0
"""... each of them give or take the whole of it."""


@dataclass(frozen=True)
class Belief:
    """What is believed of the loss that a strategy finds per minute, relative to all picks of the same batch."""

    num_images: int
    minutes: float
    mean: float
    """1: as much as the whole batch."""
    std: float


def beliefs(picks: Sequence[EarlierPick], arms: Sequence[str], kind: LossKind) -> dict[str, Belief]:
    """Estimate the relative rate of every arm from the answers so far.

    Losses are divided by the loss per minute of their whole batch, since those of two teachers have different scales. A
    batch in which nothing was found says nothing.
    """
    scale = loss_per_minute(picks, kind)
    known = [pick for pick in picks if scale[pick.batch] > 0]
    newest = max((pick.batch for pick in known), default=0)
    prior_minutes = PRIOR_IMAGES * (float(np.mean([pick.minutes for pick in known])) if known else 1.0)
    prior_variance = (PRIOR_STD * prior_minutes) ** 2 / PRIOR_IMAGES
    found = {}
    for arm in arms:
        own = [pick for pick in known if pick.picked_by == arm]
        weight = np.array([BATCH_DISCOUNT ** (newest - pick.batch) for pick in own])
        minutes = np.array([pick.minutes for pick in own])
        losses = np.array([loss_of(pick, kind) / scale[pick.batch] for pick in own])
        total_minutes = float(weight @ minutes) + prior_minutes
        mean = (float(weight @ losses) + prior_minutes) / total_minutes
        variance = float((weight**2) @ (losses - mean * minutes) ** 2) + prior_variance
        found[arm] = Belief(len(own), float(minutes.sum()), mean, variance**0.5 / total_minutes)
    return found


def loss_of(pick: EarlierPick, kind: LossKind) -> float:
    """Return the loss of a kind that was found on an image."""
    return pick.classification_loss if kind == "classification" else pick.localization_loss


def allocate(
    beliefs_by_kind: Mapping[LossKind, Mapping[str, Belief]], num_places: int, rng: np.random.Generator
) -> list[str]:
    """Return the arm that fills each place of a batch.

    Places go to the kinds of loss in turn. For each, a rate is drawn for every arm, and the largest one takes it.
    """
    arms = list(next(iter(beliefs_by_kind.values())))
    draws_PA = rng.standard_normal((num_places, len(arms)))
    for turn, kind in enumerate(LOSS_KINDS):
        of_kind = [beliefs_by_kind[kind][arm] for arm in arms]
        draws_PA[turn :: len(LOSS_KINDS)] *= [belief.std for belief in of_kind]
        draws_PA[turn :: len(LOSS_KINDS)] += [belief.mean for belief in of_kind]
    return [arms[index] for index in draws_PA.argmax(axis=1)]


def loss_per_minute(picks: Sequence[EarlierPick], kind: LossKind) -> dict[int, float]:
    """Return the loss per minute of each batch as a whole."""
    losses: defaultdict[int, float] = defaultdict(float)
    minutes: defaultdict[int, float] = defaultdict(float)
    for pick in picks:
        losses[pick.batch] += loss_of(pick, kind)
        minutes[pick.batch] += pick.minutes
    return {batch: losses[batch] / minutes[batch] for batch in minutes}
