"""Image features: one length whatever is seen, every one at the place its name says."""

import numpy as np
import pytest

from detectron_ext.image_features import feature_names, image_features

CLASSES = ["cat", "dog"]


def test_features_have_one_length_whatever_is_seen() -> None:
    rng = np.random.default_rng(0)
    lengths = set()
    for count in (0, 1, 7):
        corner = rng.uniform(0, 50, (count, 2)).astype(np.float32)
        boxes = np.concatenate([corner, corner + 10], axis=1)
        posteriors = rng.dirichlet(np.ones(5), count).astype(np.float32).reshape(count, 5)
        features = image_features(boxes, posteriors[:, :-1].max(axis=1, initial=0), posteriors, np.ones(3), 4)
        assert np.isfinite(features).all()
        lengths.add(len(features))
    assert lengths == {15 + 2 * 4}


def test_every_name_stands_where_its_feature_does() -> None:
    """One image written out: two boxes of 10 x 40 px that share half, scores 0.3 (dog) and 0.9 (cat)."""
    boxes = np.array([[0, 0, 10, 40], [0, 20, 10, 60]], dtype=np.float32)
    posteriors = np.array([[0.1, 0.3, 0.6], [0.9, 0.0, 0.1]], dtype=np.float32)
    values = image_features(boxes, np.array([0.3, 0.9], np.float32), posteriors, np.array([0.7, 0.8, 0.2]), 2)
    found = dict(zip(feature_names(CLASSES), values, strict=True))
    expected = {
        "confidence": 0.7,
        "entropy": 0.8,
        "overlap": 0.2,
        "log_boxes": np.log(3),
        "scores_0.0_to_0.2_frac": 0,
        "scores_0.2_to_0.4_frac": 0.5,
        "scores_0.4_to_0.6_frac": 0,
        "scores_0.6_to_0.8_frac": 0,
        "scores_0.8_to_1.0_frac": 0.5,
        "log_size_mean": np.log(20),
        "log_size_std": 0,
        "log_aspect_mean": np.log(4),
        "log_aspect_std": 0,
        "largest_iou": 1 / 3,
        "overlapping_frac": 1,
        "posterior:cat": 0.5,
        "posterior:dog": 0.15,
        "boxes_frac:cat": 0.5,
        "boxes_frac:dog": 0.5,
    }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)
