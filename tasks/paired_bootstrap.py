"""Two models on the same validation images: is one worse, or did the images just fall so?

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

from tasks.coco_map import coco_results, coco_truth

_Floats = NDArray[np.float64]
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """One class of one model, matched against the truth once and for all; boxes by descending score."""

    image: NDArray[np.int64]
    """(D,) index of each box's image."""
    hit: NDArray[np.bool_]
    """(T, D) whether the box found an object, by IoU threshold."""
    objects: NDArray[np.int64]
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


def compare(
    truth: pa.Table, candidate: pa.Table, champion: pa.Table, *, classes: Sequence[str], samples: int, seed: int
) -> Comparison:
    """Compare two models by paired bootstrap over images.

    Args:
        truth: contracts.ANNOTATED, with at least one image.
        candidate: its predictions on those images: image_id, boxes_xyxy, scores, labels.
        champion: the other model's, with the same class indices.
        classes: names by class index.
        samples: B.
        seed: the same seed gives the same samples.
    """
    new = match(truth, candidate, classes)
    old = match(truth, champion, classes)
    images = truth.num_rows
    once = np.ones(images, dtype=np.int64)
    new_ap, old_ap = average_precisions(new, once), average_precisions(old, once)
    differences = np.empty((samples, len(classes)))
    map_differences = np.empty(samples)
    for sample, counts in enumerate(_draws(images, samples, seed)):
        new_drawn, old_drawn = average_precisions(new, counts), average_precisions(old, counts)
        differences[sample] = new_drawn - old_drawn
        map_differences[sample] = mean_over_classes(new_drawn) - mean_over_classes(old_drawn)
    return Comparison(
        mean_over_classes(new_ap), mean_over_classes(old_ap), new_ap, old_ap, map_differences, differences
    )


def map_draws(truth: pa.Table, predictions: pa.Table, *, classes: Sequence[str], samples: int, seed: int) -> _Floats:
    """One model's mAP in percent on every draw: with the same images and seed, the same draws for any model.

    Args:
        truth: contracts.ANNOTATED, with at least one image.
        predictions: on those images: image_id, boxes_xyxy, scores, labels.
        classes: names by class index.
        samples: B.
        seed: of the draws.

    Returns:
        (B,)
    """
    matches = match(truth, predictions, classes)
    drawn = (average_precisions(matches, counts) for counts in _draws(truth.num_rows, samples, seed))
    return np.array([mean_over_classes(ap) for ap in drawn])


def match(truth: pa.Table, predictions: pa.Table, classes: Sequence[str]) -> list[Matches]:
    """Match boxes with objects at the ten COCO thresholds, class by class; K entries."""
    evaluation = COCOeval(coco_truth(truth, classes), None, "bbox")
    results = coco_results(truth, predictions)
    evaluation.cocoDt = evaluation.cocoGt.loadRes(results) if results else coco_truth(truth.slice(0, 0), classes)
    parameters = evaluation.params
    parameters.imgIds = list(range(1, truth.num_rows + 1))
    parameters.catIds = list(range(1, len(classes) + 1))
    evaluation._prepare()
    found = []
    for category in parameters.catIds:
        evaluation.ious = {(image, category): evaluation.computeIoU(image, category) for image in parameters.imgIds}
        whole = [0, 1e10]
        images = [evaluation.evaluateImg(image, category, whole, _MAX_DETECTIONS) for image in parameters.imgIds]
        found.append(_matches(images, len(parameters.iouThrs)))
    return found


def average_precisions(matches: Sequence[Matches], counts: NDArray[np.int64]) -> _Floats:
    """AP50:95 of each class in percent, as if image i were there ``counts[i]`` times.

    Exactly COCO's, but for the order of boxes with equal scores on copies of one image.

    Args:
        matches: K entries.
        counts: (I,)

    Returns:
        (K,) NaN for a class without an object.
    """
    return np.array([_average_precision(entry, counts) for entry in matches])


def mean_over_classes(ap: _Floats) -> float:
    """COCO's mAP: over classes that have objects; 0 where none has."""
    present = ap[~np.isnan(ap)]
    return float(present.mean()) if present.size else 0.0


def _draws(images: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each image is drawn, (I,), sample by sample."""
    random = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(random.integers(images, size=images), minlength=images)


def _average_precision(entry: Matches, counts: NDArray[np.int64]) -> float:
    objects = int((entry.objects * counts).sum())
    if not objects:
        return float("nan")
    if not entry.image.size:
        return 0.0
    weights = counts[entry.image]
    hits = np.cumsum(entry.hit * weights, axis=1)  # (T, D)
    boxes = np.cumsum(weights)
    precision = hits / np.maximum(boxes, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / objects
    total = 0.0
    for threshold in range(len(recall)):
        places = np.searchsorted(recall[threshold], _RECALLS, side="left")
        reached = places[places < recall.shape[1]]
        total += float(envelope[threshold][reached].sum()) / _RECALLS.size
    return 100 * total / len(recall)


def _matches(images: Sequence[dict[str, Any] | None], thresholds: int) -> Matches:
    """From pycocotools' results of one class; None where an image has neither boxes nor objects of it."""
    scores: list[_Floats] = [np.zeros(0)]
    places: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    hits: list[NDArray[np.bool_]] = [np.zeros((thresholds, 0), dtype=np.bool_)]
    for place, image in enumerate(images):
        if image is not None:
            scores.append(np.asarray(image["dtScores"], dtype=np.float64))
            places.append(np.full(len(image["dtScores"]), place, dtype=np.int64))
            hits.append(np.asarray(image["dtMatches"]).reshape(thresholds, -1) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # stable, as COCO's own
    objects = [0 if image is None else len(image["gtIds"]) for image in images]
    return Matches(
        np.concatenate(places)[order], np.concatenate(hits, axis=1)[:, order], np.array(objects, dtype=np.int64)
    )
