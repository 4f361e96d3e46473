"""Evidence with a known probability of every detection to be right, made of arrays alone."""

import numpy as np

from tasks.autolabel.evidence import Evidence, FoundBoxes, JudgedBoxes
from tasks.params.autolabel import AutolabelParams

PARAMS = AutolabelParams(
    wanted_precision=0.9,
    box_iou=0.5,
    max_wrong_images_frac=0.1,
    confidence_level=0.9,
    min_calibration_images=20,
    max_crowd_boxes_frac=0.1,
    audit_boxes=100,
    audit_images=50,
    audit_confidence_level=0.95,
)


def right_probability(scores: np.ndarray) -> np.ndarray:
    """0.6 at score 0, 1 at score 1."""
    return 0.6 + 0.4 * scores


def planted(rng: np.random.Generator, num_images: int, mean_boxes: float = 1.5) -> JudgedBoxes:
    """Draw images whose boxes are of class 0; those of one image share their luck, so they are dependent."""
    counts = rng.poisson(mean_boxes, num_images)
    images = np.repeat(np.arange(num_images), counts)
    scores = rng.beta(3, 0.7, counts.sum()).astype(np.float32)
    luck = rng.random(num_images)[images]
    own = rng.random(len(scores))
    is_right = np.where(rng.random(len(scores)) < 0.7, luck, own) < right_probability(scores)
    found = FoundBoxes(
        [f"{number:06d}" for number in range(num_images)],
        counts.astype(np.int64),
        np.zeros((len(scores), 4), np.float32),
        scores,
        np.zeros(len(scores), np.int64),
        rng.exponential(0.05, num_images),
    )
    missed = (rng.random(num_images) < found.residual_mass).astype(np.int64)
    return JudgedBoxes(found, is_right, missed)


def planted_evidence(rng: np.random.Generator, num_pool: int, num_sample: int, mean_boxes: float = 1.5) -> Evidence:
    """Draw pool and sample alike; nothing was chosen."""
    nothing = planted(rng, 1).found.subset(np.array([False]))
    pool, sample, validation = (planted(rng, size, mean_boxes) for size in (num_pool, num_sample, 60))
    return Evidence(pool.found, sample, nothing, 0, num_sample, validation)
