"""Fit the model of single boxes to the reviewed images of a campaign, and judge it (docs/method.md#box-errors)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectron_ext.box_error_model import (
    BoxErrorModel,
    Calibration,
    LabeledDetections,
    MissModel,
    Outcome,
    box_features,
    calibrate,
    detection_outcomes,
    fit_box_error_model,
    fit_miss_model,
    inverse_frequency_weights,
)
from detectron_ext.uncertainty_metrics import Floats, box_overlaps, posterior_entropy
from tasks.data import schemas
from tasks.data.dwa_samples import CALIBRATION_GROUP, ReviewedImage, realized_loss_of
from tasks.data.label_store import read_labels
from tasks.params.stages import DwaParams


@dataclass(frozen=True)
class ErrorModel:
    """What score knows about the teacher's errors."""

    images: Sequence[ReviewedImage]
    data: LabeledDetections
    class_weight_K: Floats
    misses: MissModel
    boxes: BoxErrorModel | None
    """None: there are too few reviewed images."""


def fit_error_model(
    images: Sequence[ReviewedImage], labels: Path, classes: Sequence[str], min_images: int, class_weight_max: float
) -> ErrorModel:
    """Fit the model to all reviewed images; the rate of misses also where there are too few of them.

    Args:
        images: reviewed images of the window's batches and of the calibration set.
        labels: folder of label batches, for the frequencies of the classes.
        classes: class names in the order of their indices.
        min_images: reviewed images that the model of boxes needs.
        class_weight_max: bound on the class weights.
    """
    names = [box.category for answer in read_labels(labels).current.values() for box in answer.label.boxes]
    num_labels_K = np.array([names.count(name) for name in classes])
    data = labeled_detections(images, len(classes))
    model = fit_box_error_model(data) if len(images) >= min_images else None
    return ErrorModel(
        images,
        data,
        inverse_frequency_weights(num_labels_K, class_weight_max),
        model.misses if model else fit_miss_model(*data.miss_samples()),
        model,
    )


def labeled_detections(images: Sequence[ReviewedImage], num_classes: int) -> LabeledDetections:
    """Compute features and outcomes of every detection on the reviewed images."""
    num_boxes_P = np.array([len(image.found.scores) for image in images], dtype=np.int64)
    scores_B = _concatenate([image.found.scores for image in images])
    class_ids_B = _concatenate([image.found.class_ids for image in images]).astype(np.int64)
    boxes_B4 = _concatenate([image.found.boxes_xyxy for image in images]).reshape(-1, 4)
    probs_BK = _concatenate([image.found.class_probs for image in images]).reshape(-1, num_classes + 1)
    stability_B = _concatenate([image.found.stability for image in images])
    outcomes = [
        detection_outcomes(
            image.found.boxes_xyxy, image.found.scores, image.found.class_ids, image.boxes_xyxy, image.class_ids
        )
        for image in images
    ]
    missed = [
        np.bincount(image.class_ids[is_missed_G], minlength=num_classes)
        for image, (_, is_missed_G) in zip(images, outcomes, strict=True)
    ]
    overlaps = box_overlaps(boxes_B4, num_boxes_P)
    return LabeledDetections(
        [image.found.image_id for image in images],
        np.array([image.group for image in images], dtype=np.int64),
        num_boxes_P,
        box_features(
            boxes_B4,
            scores_B,
            class_ids_B,
            probs_BK,
            posterior_entropy(probs_BK),
            stability_B,
            overlaps,
            num_boxes_P,
            num_classes,
        ),
        class_ids_B,
        _concatenate([outcome_N for outcome_N, _ in outcomes]).astype(np.int64),
        np.array([[image.found.residual_mass, image.found.scores.sum()] for image in images]).reshape(-1, 2),
        np.array(missed, dtype=np.int64).reshape(-1, num_classes),
        np.array([image.is_random_pick for image in images], dtype=bool),
    )


def _concatenate(parts: Sequence[NDArray[Any]]) -> Floats:
    """Return the values one after another, (B,) float64; no parts give none."""
    return np.concatenate([np.zeros(0), *(part.ravel() for part in parts)])


def error_model_document(
    model: ErrorModel,
    calibration_metrics: Mapping[str, Floats],
    classes: Sequence[str],
    dwa: DwaParams,
    seed: int,
) -> dict[str, Any]:
    """Judge the model on held-out images, and return what score.json says of it.

    ``used`` is true only where the image value ranks the class-balanced realized loss better than equal weights and
    than each metric alone by more than one standard error.

    Args:
        model: of this round.
        calibration_metrics: normalized metrics of the calibration images, by image id.
        classes: class names in the order of their indices.
        dwa: folds, exponent of the focal loss, needed images.
        seed: of the folds.
    """
    document: dict[str, Any] = {
        "num_images": len(model.images),
        "miss_coefficients": [round(float(value), 6) for value in model.misses.coefficients_3],
        "class_weights": dict(zip(classes, np.round(model.class_weight_K, 6).tolist(), strict=True)),
        "outcomes": {outcome.name.lower(): int((model.data.outcome_B == outcome).sum()) for outcome in Outcome},
        "num_missed": int(model.data.num_missed_PK.sum()),
    }
    if model.boxes is None:
        needed = f"dwa.min_training_samples is {dwa.min_training_samples}"
        reason = f"cold start: {len(model.images)} reviewed images, {needed}"
        return document | {"used": False, "reason": reason, "calibration": None}
    metrics_PM = np.array(
        [
            calibration_metrics[image.found.image_id] if image.group == CALIBRATION_GROUP else image.metrics
            for image in model.images
        ]
    )
    metrics_P3 = metrics_PM[:, : len(schemas.METRICS)]
    losses = [realized_loss_of(image, len(classes), dwa.focal_gamma) for image in model.images]
    judged = calibrate(
        model.data,
        model.class_weight_K,
        np.array([loss.weighted(model.class_weight_K, model.class_weight_K) for loss in losses]),
        {"equal": metrics_P3.mean(axis=1)} | {name: metrics_P3[:, i] for i, name in enumerate(schemas.METRICS)},
        num_folds=dwa.cv_folds,
        seed=seed,
    )
    found = {name: round(value, 6) if isinstance(value, float) else value for name, value in judged._asdict().items()}
    return document | {"used": judged.beats_rival, "reason": _reason(judged), "calibration": found}


def _reason(judged: Calibration) -> str:
    if judged.spearman is None or judged.spearman_rival is None or judged.standard_error is None:
        return "the held-out images allow no rank correlation"
    comparison = (
        f"held-out rank correlation of the value {judged.spearman:.2f} against {judged.spearman_rival:.2f} of "
        f"{judged.rival}, standard error {judged.standard_error:.2f}"
    )
    return comparison if judged.beats_rival else f"fallback: {comparison}"
