"""What is drawn is decided by number, not by luck."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.demo.plan import POOL, VAL, Difficulty, DifficultyMix, plan_scenes
from tasks.demo.sources import read_digits

CLASSES = ["zero", "one", "two", "three"]


@given(num=st.integers(0, 200), seed=st.integers(0, 5), mix=st.sampled_from([POOL, VAL]))
def test_every_page_is_planned_and_empty_ones_are_empty(num: int, seed: int, mix: DifficultyMix) -> None:
    pages = plan_scenes(num, CLASSES, mix, np.random.default_rng(seed))
    assert len(pages) == num
    assert all((page.difficulty is Difficulty.EMPTY) == (not page.classes) for page in pages)


def test_easy_pictures_of_the_pool_show_frequent_classes_only() -> None:
    pages = plan_scenes(300, CLASSES, POOL, np.random.default_rng(0))
    shown = {kind: Counter(n for p in pages if p.difficulty is kind for n in p.classes) for kind in Difficulty}
    assert set(shown[Difficulty.EASY]) == set(CLASSES[:2])
    rare = sum(shown[Difficulty.HARD][name] for name in CLASSES[2:])
    assert rare > shown[Difficulty.MEDIUM][CLASSES[2]] + shown[Difficulty.MEDIUM][CLASSES[3]]
    assert 0.4 < sum(page.difficulty is Difficulty.EASY for page in pages) / 300 < 0.5


def test_validation_shows_other_handwriting() -> None:
    pool, val = read_digits(CLASSES, "pool"), read_digits(CLASSES, "val")
    for name in CLASSES:
        assert len(pool[name]) > 2 * len(val[name]) > 0
        known = {ink.tobytes() for ink in pool[name]}
        fresh = sum(ink.tobytes() not in known for ink in val[name])
        assert fresh == pytest.approx(len(val[name]), abs=1)
