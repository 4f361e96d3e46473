"""Compare two models on the same validation images by paired bootstrap (docs/method.md#promotion).

Images are drawn with replacement, the same draw for both models, and the COCO mAP of each draw is worked out
anew. What is compared is the difference within a draw, so hard and easy images do not blur it.

Shape letters: I images, K classes, T IoU thresholds, D boxes of one class, B bootstrap samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from tasks.evaluation.coco_map import coco_ground_truth, coco_results

_Floats = NDArray[np.float64]
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """One class of one model, matched with the labels once; boxes by descending score."""

    image_index: NDArray[np.int64]
    """(D,) index of each box's image."""
    is_true_positive: NDArray[np.bool_]
    """(T, D) whether the box found an object, by IoU threshold."""
    num_gt: NDArray[np.int64]
    """(I,) objects of the class on each image."""


@dataclass(frozen=True)
class Comparison:
    """Candidate minus champion, in percent points. NaN: the class is on none of the images drawn."""

    candidate_map: float
    champion_map: float
    candidate_ap: _Floats
    """(K,)"""
    champion_ap: _Floats
    """(K,)"""
    map_differences: _Floats
    """(B,)"""
    ap_differences: _Floats
    """(B, K)"""


def compare_models(
    truth: pa.Table, candidate: pa.Table, champion: pa.Table, *, classes: Sequence[str], samples: int, seed: int
) -> Comparison:
    """Compare two models by paired bootstrap over images.

    Args:
        truth: schemas.ANNOTATED, with at least one image.
        candidate: its predictions on those images: image_id, boxes_xyxy, scores, labels.
        champion: the other model's, with the same class indices.
        classes: names by class index.
        samples: B.
        seed: the same seed gives the same samples.
    """
    new_matches = match_detections(truth, candidate, classes)
    old_matches = match_detections(truth, champion, classes)
    images = truth.num_rows
    unit_counts = np.ones(images, dtype=np.int64)
    new_ap, old_ap = average_precisions(new_matches, unit_counts), average_precisions(old_matches, unit_counts)
    differences = np.empty((samples, len(classes)))
    map_differences = np.empty(samples)
    for sample, counts in enumerate(_bootstrap_counts(images, samples, seed)):
        new_sample_ap, old_sample_ap = average_precisions(new_matches, counts), average_precisions(old_matches, counts)
        differences[sample] = new_sample_ap - old_sample_ap
        map_differences[sample] = mean_over_classes(new_sample_ap) - mean_over_classes(old_sample_ap)
    return Comparison(
        mean_over_classes(new_ap), mean_over_classes(old_ap), new_ap, old_ap, map_differences, differences
    )


def bootstrap_map(
    truth: pa.Table, predictions: pa.Table, *, classes: Sequence[str], samples: int, seed: int
) -> _Floats:
    """Compute one model's mAP in percent on every draw; the same images and seed give the same draws for any model.

    Args:
        truth: schemas.ANNOTATED, with at least one image.
        predictions: on those images: image_id, boxes_xyxy, scores, labels.
        classes: names by class index.
        samples: B.
        seed: of the draws.

    Returns:
        (B,)
    """
    matches = match_detections(truth, predictions, classes)
    sample_aps = (average_precisions(matches, counts) for counts in _bootstrap_counts(truth.num_rows, samples, seed))
    return np.array([mean_over_classes(ap) for ap in sample_aps])


def match_detections(truth: pa.Table, predictions: pa.Table, classes: Sequence[str]) -> list[Matches]:
    """Match boxes with objects at the ten COCO thresholds, class by class; K entries."""
    evaluation = COCOeval(coco_ground_truth(truth, classes), None, "bbox")
    results = coco_results(truth, predictions)
    evaluation.cocoDt = evaluation.cocoGt.loadRes(results) if results else coco_ground_truth(truth.slice(0, 0), classes)
    parameters = evaluation.params
    parameters.imgIds = list(range(1, truth.num_rows + 1))
    parameters.catIds = list(range(1, len(classes) + 1))
    evaluation._prepare()
    matches = []
    for category in parameters.catIds:
        evaluation.ious = {(image, category): evaluation.computeIoU(image, category) for image in parameters.imgIds}
        area_range = [0, 1e10]
        images = [evaluation.evaluateImg(image, category, area_range, _MAX_DETECTIONS) for image in parameters.imgIds]
        matches.append(_collect_matches(images, len(parameters.iouThrs)))
    return matches


def average_precisions(matches: Sequence[Matches], counts: NDArray[np.int64]) -> _Floats:
    """Compute AP50:95 of each class in percent, with image i counted ``counts[i]`` times.

    Exactly COCO's, but for the order of boxes with equal scores on copies of one image.

    Args:
        matches: K entries.
        counts: (I,)

    Returns:
        (K,) NaN for a class without an object.
    """
    return np.array([_average_precision(entry, counts) for entry in matches])


def mean_over_classes(ap: _Floats) -> float:
    """Average AP over the classes that have objects, as COCO does; 0 where none has."""
    present = ap[~np.isnan(ap)]
    return float(present.mean()) if present.size else 0.0


def _bootstrap_counts(images: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield for each sample how often each image is drawn, (I,)."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(images, size=images), minlength=images)


def _average_precision(entry: Matches, counts: NDArray[np.int64]) -> float:
    num_gt = int((entry.num_gt * counts).sum())
    if not num_gt:
        return float("nan")
    if not entry.image_index.size:
        return 0.0
    weights = counts[entry.image_index]
    true_positives = np.cumsum(entry.is_true_positive * weights, axis=1)  # (T, D)
    boxes = np.cumsum(weights)
    precision = true_positives / np.maximum(boxes, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true_positives / num_gt
    total = 0.0
    for threshold in range(len(recall)):
        positions = np.searchsorted(recall[threshold], _RECALLS, side="left")
        reached = positions[positions < recall.shape[1]]
        total += float(envelope[threshold][reached].sum()) / _RECALLS.size
    return 100 * total / len(recall)


def _collect_matches(images: Sequence[dict[str, Any] | None], thresholds: int) -> Matches:
    """Convert pycocotools' results of one class; None where an image has neither boxes nor objects of it."""
    scores: list[_Floats] = [np.zeros(0)]
    image_indices: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    true_positives: list[NDArray[np.bool_]] = [np.zeros((thresholds, 0), dtype=np.bool_)]
    for index, image in enumerate(images):
        if image is not None:
            scores.append(np.asarray(image["dtScores"], dtype=np.float64))
            image_indices.append(np.full(len(image["dtScores"]), index, dtype=np.int64))
            true_positives.append(np.asarray(image["dtMatches"]).reshape(thresholds, -1) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # stable, as COCO's own
    num_gt = [0 if image is None else len(image["gtIds"]) for image in images]
    return Matches(
        np.concatenate(image_indices)[order],
        np.concatenate(true_positives, axis=1)[:, order],
        np.array(num_gt, dtype=np.int64),
    )
