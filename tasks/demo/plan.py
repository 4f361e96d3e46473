"""What goes into each picture, decided before any is drawn, so that counts are exact and not luck."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Difficulty(Enum):
    """How hard a picture is."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"
    EMPTY = "empty"


@dataclass(frozen=True)
class DifficultyMix:
    """Shares of the kinds in one set of pictures; the rest is medium."""

    easy_frac: float
    hard_frac: float
    empty_frac: float
    easy_classes: int | None
    """Easy pictures show only so many of the most frequent classes; None: all."""
    class_decay: dict[Difficulty, float]
    """Of two classes that follow each other, the second is this much as frequent as the first."""


POOL = DifficultyMix(
    easy_frac=0.46,
    hard_frac=0.25,
    empty_frac=0.06,
    easy_classes=2,
    class_decay={Difficulty.EASY: 0.45, Difficulty.MEDIUM: 0.6, Difficulty.HARD: 0.8},
)
"""Half of it teaches little: one or two digits of the frequent classes on a calm background."""
VAL = DifficultyMix(
    easy_frac=0.30,
    hard_frac=0.30,
    empty_frac=0.05,
    easy_classes=None,
    class_decay={Difficulty.EASY: 0.8, Difficulty.MEDIUM: 0.9, Difficulty.HARD: 0.95},
)
"""Balanced enough that every class is measured on ten boxes or more."""

_NUM_DIGITS = {Difficulty.EASY: (1, 2), Difficulty.MEDIUM: (2, 4), Difficulty.HARD: (3, 6), Difficulty.EMPTY: (0, 0)}
_DUPLICATE_FRAC = 0.03


@dataclass(frozen=True)
class SceneSpec:
    """The plan of one picture."""

    difficulty: Difficulty
    classes: tuple[str, ...]
    """Of the digits in it, in the order of drawing."""


def plan_scenes(
    num_images: int, classes: Sequence[str], mix: DifficultyMix, rng: np.random.Generator
) -> list[SceneSpec]:
    """Kinds and classes of ``num_images`` pictures in random order."""
    kinds = [kind for kind, number in _kind_counts(num_images, mix).items() for _ in range(number)]
    specs = []
    for kind in Difficulty:
        sizes = [int(rng.integers(*_NUM_DIGITS[kind], endpoint=True)) for _ in range(kinds.count(kind))]
        names = _class_names(sum(sizes), classes, kind, mix, rng)
        for size in sizes:
            specs.append(SceneSpec(kind, tuple(names[:size])))
            names = names[size:]
    return [specs[i] for i in rng.permutation(len(specs))]


def num_duplicates(num_images: int) -> int:
    """How many of the pictures are exact copies of others."""
    return round(_DUPLICATE_FRAC * num_images)


def _kind_counts(num_images: int, mix: DifficultyMix) -> dict[Difficulty, int]:
    easy, hard, empty = (round(frac * num_images) for frac in (mix.easy_frac, mix.hard_frac, mix.empty_frac))
    return {
        Difficulty.EASY: easy,
        Difficulty.HARD: hard,
        Difficulty.EMPTY: empty,
        Difficulty.MEDIUM: num_images - easy - hard - empty,
    }


def _class_names(
    num: int, classes: Sequence[str], kind: Difficulty, mix: DifficultyMix, rng: np.random.Generator
) -> list[str]:
    """``num`` class names in random order, in the proportions of the kind's tail."""
    if kind is Difficulty.EMPTY:
        return []
    shares = np.power(mix.class_decay[kind], np.arange(len(classes)))
    if kind is Difficulty.EASY:
        shares[len(classes) if mix.easy_classes is None else mix.easy_classes :] = 0
    edges = np.round(np.cumsum(shares) / shares.sum() * num).astype(int)  # rounding sums keeps their total
    names = [name for name, many in zip(classes, np.diff(edges, prepend=0), strict=True) for _ in range(many)]
    return [names[i] for i in rng.permutation(len(names))]
