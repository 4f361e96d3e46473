"""Image features: one length whatever is seen, every one at the place its name says, batches equal to single images."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.image_features import detection_features, feature_names, image_features
from detectron_ext.uncertainty_metrics import box_overlaps, pairwise_iou

CLASSES = ["cat", "dog"]


def features_by_hand(boxes: np.ndarray, scores: np.ndarray, probs: np.ndarray, num_classes: int) -> list[float]:
    """The features after the three metrics, box by box."""
    count = len(scores)
    if count == 0:
        return [0.0] * (12 + 2 * num_classes)
    edges = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    histogram = [sum(low <= s < high or s == high == 1.0 for s in scores) / count for low, high in pairwise(edges)]
    sides = [(max(x2 - x1, 1.0), max(y2 - y1, 1.0)) for x1, y1, x2, y2 in boxes.astype(float).tolist()]
    sizes, aspects = [np.log(w * h) / 2 for w, h in sides], [np.log(h / w) for w, h in sides]
    iou = pairwise_iou(boxes, boxes)
    highest = [max((iou[i, j] for j in range(count) if j != i), default=0.0) for i in range(count)]
    claimed = probs[:, :-1].argmax(axis=1)
    return [
        np.log(1 + count),
        *histogram,
        *(np.mean(sizes), np.std(sizes), np.mean(aspects), np.std(aspects)),
        *(max(highest), np.mean([value > 0.3 for value in highest])),
        *(np.mean(probs[:, c]) for c in range(num_classes)),
        *(np.mean(claimed == c) for c in range(num_classes)),
    ]


@given(seed=st.integers(0, 10_000), num_images=st.integers(0, 9), num_classes=st.integers(1, 4))
def test_batches_are_equal_to_the_written_out_loops(seed: int, num_images: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 7, num_images) * (rng.random(num_images) < 0.7)
    total = int(counts.sum())
    corner = rng.uniform(0, 50, (total, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(-1, 50, (total, 2))], axis=1).astype(np.float32)
    probs = rng.dirichlet(np.ones(num_classes + 1), total).reshape(total, num_classes + 1).astype(np.float16)
    scores = probs[:, :-1].max(axis=1, initial=0).astype(np.float32)
    found = detection_features(boxes, scores, probs, box_overlaps(boxes, counts), counts, num_classes)
    assert found.shape == (num_images, 12 + 2 * num_classes)
    for image, (first, last) in enumerate(pairwise(np.concatenate([[0], np.cumsum(counts)]))):
        expected = features_by_hand(
            boxes[first:last], scores[first:last], probs[first:last].astype(np.float64), num_classes
        )
        assert found[image].tolist() == pytest.approx(expected, abs=1e-6)


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
