"""One thing on a picture."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.demo.digits import Overlay, blend, clutter_mask, digit_mask
from tasks.demo.sources import read_digits

INKS = read_digits(["four"], "pool")["four"]


@given(height=st.integers(16, 80), sample=st.integers(0, len(INKS) - 1), seed=st.integers(0, 99))
def test_digit_masks_are_tight_and_of_the_asked_height(height: int, sample: int, seed: int) -> None:
    mask = digit_mask(INKS[sample], height, np.random.default_rng(seed), max_tilt_deg=18)
    assert mask.min() >= 0
    assert mask.max() <= 1
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert edge.max() >= 0.35  # something of the stroke touches each side of the box
    assert 0.6 * height <= mask.shape[0] <= 1.4 * height


@given(size=st.integers(16, 60), seed=st.integers(0, 99))
def test_clutter_masks_are_tight(size: int, seed: int) -> None:
    mask = clutter_mask(size, np.random.default_rng(seed))
    assert min(edge.max() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) >= 0.35


@given(level=st.floats(0, 255), contrast=st.floats(0.3, 1.0), seed=st.integers(0, 20))
def test_blending_changes_only_the_stamps_box_and_by_the_contrast(level: float, contrast: float, seed: int) -> None:
    canvas = np.full((30, 40, 3), level)
    blend(canvas, Overlay(np.ones((10, 8)), 5, 7), contrast, np.random.default_rng(seed))
    changed = np.argwhere((canvas != level).any(axis=2))
    assert changed.min(axis=0).tolist() == [7, 5]
    assert changed.max(axis=0).tolist() == [16, 12]
    room = max(level, 255 - level)
    moved = abs(float(canvas[7, 5] @ [0.299, 0.587, 0.114]) - level)
    assert 0.5 * contrast * room <= moved <= contrast * room + 1
