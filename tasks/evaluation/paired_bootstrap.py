"""Compare two models on the same validation images by paired bootstrap (docs/method.md#promotion).

Images are drawn with replacement, the same draw for both models, and the COCO mAP of each draw is worked out
anew. What is compared is the difference within a draw, so hard and easy images do not blur it.

Shape letters: I images, K classes, B bootstrap samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.evaluation.average_precision import average_precisions
from tasks.evaluation.coco_matching import Floats, Integers, match_detections


@dataclass(frozen=True)
class Comparison:
    """Candidate minus champion, in percent points. NaN: the class is on none of the images drawn."""

    candidate_map: float
    champion_map: float
    candidate_ap: Floats
    """(K,)"""
    champion_ap: Floats
    """(K,)"""
    map_differences: Floats
    """(B,)"""
    ap_differences: Floats
    """(B, K)"""


def compare_models(
    truth: pa.Table, candidate: pa.Table, champion: pa.Table, *, classes: Sequence[str], samples: int, seed: int
) -> Comparison:
    """Compare two models by paired bootstrap over images.

    Args:
        truth: schemas.ANNOTATED, with at least one image.
        candidate: its predictions on those images: image_id, boxes_xyxy, scores, class_ids.
        champion: the other model's, with the same class indices.
        classes: names by class index.
        samples: B.
        seed: the same seed gives the same samples.
    """
    counts_BI = np.vstack([np.ones((1, truth.num_rows), dtype=np.int64), _bootstrap_counts(truth, samples, seed)])
    new_ap, old_ap = (_class_ap(truth, predictions, classes, counts_BI) for predictions in (candidate, champion))
    new_map, old_map = mean_over_classes(new_ap), mean_over_classes(old_ap)
    return Comparison(
        candidate_map=float(new_map[0]),
        champion_map=float(old_map[0]),
        candidate_ap=new_ap[0],
        champion_ap=old_ap[0],
        map_differences=(new_map - old_map)[1:],
        ap_differences=(new_ap - old_ap)[1:],
    )


def bootstrap_map(truth: pa.Table, predictions: pa.Table, *, classes: Sequence[str], samples: int, seed: int) -> Floats:
    """Compute one model's mAP in percent on every draw; the same images and seed give the same draws for any model.

    Args:
        truth: schemas.ANNOTATED, with at least one image.
        predictions: on those images: image_id, boxes_xyxy, scores, class_ids.
        classes: names by class index.
        samples: B.
        seed: of the draws.

    Returns:
        (B,)
    """
    return mean_over_classes(_class_ap(truth, predictions, classes, _bootstrap_counts(truth, samples, seed)))


def mean_over_classes(ap: Floats) -> Floats:
    """Average AP (..., K) over the classes that have objects, as COCO does; 0 where none has."""
    known = ~np.isnan(ap)
    return np.asarray(np.where(known, ap, 0.0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1))


def _class_ap(truth: pa.Table, predictions: pa.Table, classes: Sequence[str], counts_BI: Integers) -> Floats:
    """AP50:95 of each class in percent on every draw, (B, K)."""
    matches = match_detections(truth, predictions, len(classes))
    return np.asarray(100 * average_precisions(matches, counts_BI).mean(axis=2))


def _bootstrap_counts(truth: pa.Table, samples: int, seed: int) -> Integers:
    """How often each image is drawn in each sample, (B, I)."""
    rng, images = np.random.default_rng(seed), truth.num_rows
    return np.array(
        [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(samples)], dtype=np.int64
    ).reshape(samples, images)
