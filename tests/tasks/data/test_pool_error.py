"""The document of the pool's error: draws weighted by their pools, calibration images apart, chosen ones compared."""

import numpy as np
import pytest

from detectron_ext.pool_error import estimate_mean
from tasks.data.detections import StoredDetections
from tasks.data.dwa_samples import CALIBRATION_GROUP, ReviewedImage
from tasks.data.pool_error import LEVEL, pool_error_document


def reviewed(group: int, num_missed: int, *, drawn: bool, candidates: int) -> ReviewedImage:
    """An image without detections that holds ``num_missed`` objects."""
    corner = np.arange(num_missed)[:, None] * 50.0 + np.zeros(2)
    nothing = np.zeros(0, dtype=np.float32)
    found = StoredDetections(
        "x", nothing.reshape(0, 4), nothing, np.zeros(0, dtype=np.int64), nothing.reshape(0, 3), nothing, 0.0
    )
    boxes = np.concatenate([corner, corner + 20], axis=1).reshape(-1, 4)
    return ReviewedImage(found, group, np.zeros(3), boxes, np.zeros(num_missed, dtype=np.int64), drawn, candidates)


def test_draws_count_by_their_pool_and_chosen_images_by_themselves() -> None:
    """Batch 1: 8 answered draws from 80 images; batch 2: 10 from 50."""
    draws = [reviewed(1, n % 3, drawn=True, candidates=80) for n in range(8)]
    draws += [reviewed(2, n % 2, drawn=True, candidates=50) for n in range(10)]
    chosen = [reviewed(1, 4, drawn=False, candidates=80)] * 3
    document = pool_error_document([*draws, *chosen], [], 2, 1.5)
    missed = np.array([n % 3 for n in range(8)] + [n % 2 for n in range(10)], dtype=float)
    weights = np.array([10.0] * 8 + [5.0] * 10)
    expected = estimate_mean(missed, weights, level=LEVEL)
    assert expected is not None
    assert document["drawn"]["misses"] == pytest.approx(expected._asdict(), abs=1e-6)
    of_a_miss = -((1 - 0.05) ** 1.5) * np.log(0.05)
    assert document["drawn"]["loss"]["mean"] == pytest.approx(expected.mean * of_a_miss, abs=1e-5)
    assert document["chosen"] == {
        "num_images": 3, "loss": {"mean": pytest.approx(4 * of_a_miss, abs=1e-5)}, "misses": {"mean": 4.0},
    }  # fmt: skip
    assert document["calibration"] == {"num_images": 0, "loss": None, "misses": None}


def test_calibration_images_estimate_the_current_teacher_on_their_own() -> None:
    images = [reviewed(CALIBRATION_GROUP, n % 4, drawn=True, candidates=0) for n in range(16)]
    document = pool_error_document([], images, 2, 1.5)
    assert document["calibration"]["misses"]["mean"] == pytest.approx(1.5)
    assert document["drawn"] == {"num_images": 0, "loss": None, "misses": None}
    assert document["chosen"] == {"num_images": 0, "loss": None, "misses": None}
