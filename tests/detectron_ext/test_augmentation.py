"""The strong view: Unbiased Teacher's list, hue and cutouts against written-out numbers."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from detectron_ext.augmentation import CUTOUTS, AugmentationConfig, Cutout, shift_hue, strong_augment


def config(magnitude: float) -> AugmentationConfig:
    return AugmentationConfig(32, 64, strong_magnitude=magnitude)


def test_without_magnitude_nothing_changes() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for seed in range(10):
        np.testing.assert_array_equal(strong_augment(pixels, config(0.0), np.random.default_rng(seed)), pixels)


@pytest.mark.parametrize("shift", [-0.1, 0.04, 0.3])
def test_hue_turns_on_the_color_circle(shift: float) -> None:
    color = (200, 80, 60)
    turned = np.asarray(shift_hue(Image.new("RGB", (2, 2), color), shift))[0, 0]
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    expected = 255 * np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    np.testing.assert_allclose(turned, expected, atol=6)  # PIL keeps 8 bits of hue and saturation


def test_a_hue_shift_below_one_step_leaves_every_pixel() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(shift_hue(Image.fromarray(pixels), 0.0019)), pixels)


def test_a_cutout_is_one_rectangle_of_the_drawn_area_and_aspect() -> None:
    for seed in range(50):
        pixels = np.zeros((60, 60, 3), dtype=np.uint8)
        Cutout(1.0, (0.1, 0.1), (0.5, 2.0)).apply(pixels, np.random.default_rng(seed))
        rows, columns = np.nonzero(pixels.any(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.9 * 360 <= height * width <= 360
        assert 0.45 <= height / width <= 2.25


def test_a_cutout_that_is_longer_than_the_image_is_cut() -> None:
    pixels = np.zeros((10, 100, 3), dtype=np.uint8)
    Cutout(1.0, (0.2, 0.2), (8.0, 8.0)).apply(pixels, np.random.default_rng(1))
    rows, columns = np.nonzero(pixels.any(axis=2))
    assert np.ptp(rows) + 1 == 10
    assert np.ptp(columns) + 1 == 5  # (0.2 * 1000 / 8) ** 0.5


def test_up_to_three_cutouts_with_the_stated_probabilities() -> None:
    """With 0.7, 0.5 and 0.3 a view has none in 0.3 * 0.5 * 0.7 = 10.5 % of all cases."""
    assert [cutout.probability for cutout in CUTOUTS] == [0.7, 0.5, 0.3]
    gray = np.full((20, 20, 3), 128, dtype=np.uint8)  # jitter, gray and blur leave it in one color
    views = [strong_augment(gray, config(1.0), np.random.default_rng(seed)) for seed in range(800)]
    untouched = sum(len(np.unique(view.reshape(-1, 3), axis=0)) == 1 for view in views)
    assert untouched / len(views) == pytest.approx(0.105, abs=0.035)
