"""Detections of a GPU against those of a CPU, and of a batch against those of single images."""

import numpy as np
import pytest
import torch

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.inference import PreparedImage, detect, prepare_image
from detectron_ext.meta_arch import PerImageRCNN, build_detector
from tests.detectron_ext.tiny import TINY

pytestmark = pytest.mark.gpu
_SIZES_PX = [(64, 64), (64, 96), (96, 64), (64, 64)]


def new_detector(device: str) -> PerImageRCNN:
    """The same weights on every device."""
    torch.manual_seed(0)
    state = build_detector(TINY, "cpu").state_dict()
    detector = build_detector(TINY, device)
    detector.load_state_dict(state)
    detector.eval()
    return detector


def prepared_images() -> list[PreparedImage]:
    random = np.random.default_rng(0)
    sides = AugmentationConfig(short_side_px=64, long_side_px=96)
    return [prepare_image(random.integers(0, 256, (*size, 3), dtype=np.uint8), sides) for size in _SIZES_PX]


def test_detections_are_those_of_the_cpu(device: str, no_tf32: None) -> None:
    images = prepared_images()
    expected = detect(new_detector("cpu"), images, mixed_precision=False)
    found = detect(new_detector(device), images, mixed_precision=False)
    for one, two in zip(found, expected, strict=True):
        # Not box by box: scores of random weights are nearly equal, and rounding decides which box NMS keeps.
        assert len(one.scores) > 0
        assert one.scores.max() == pytest.approx(two.scores.max(), abs=1e-3)
        np.testing.assert_allclose(one.class_probs.sum(axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(one.embedding, two.embedding, rtol=1e-2, atol=1e-3)


def test_the_batch_does_not_change_an_image(device: str, no_tf32: None) -> None:
    detector, images = new_detector(device), prepared_images()
    together = detect(detector, images, mixed_precision=False)
    for image, one in zip(images, together, strict=True):
        [alone] = detect(detector, [image], mixed_precision=False)
        assert one.scores.max() == pytest.approx(alone.scores.max(), abs=1e-4)
        np.testing.assert_allclose(one.embedding, alone.embedding, rtol=1e-3, atol=1e-4)


def test_mixed_precision_detects_nearly_the_same_in_float32_outputs(device: str) -> None:
    detector, images = new_detector(device), prepared_images()
    full = detect(detector, images, mixed_precision=False)
    half = detect(detector, images, mixed_precision=True)
    for one, two in zip(half, full, strict=True):
        assert one.boxes_xyxy.dtype == one.scores.dtype == one.class_probs.dtype == np.float32
        assert one.scores.max() == pytest.approx(two.scores.max(), abs=0.02)
        np.testing.assert_allclose(one.embedding, two.embedding, rtol=0.1, atol=0.05)
