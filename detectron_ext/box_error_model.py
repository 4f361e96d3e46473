"""Predict which detections of an image are wrong and how many objects were missed (docs/method.md#box-errors).

Shape shorthand: P images with B detections in all, N detections of one image, G labeled boxes, K foreground classes,
F features of a detection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectron_ext.detection_loss import Ints, match_detections
from detectron_ext.uncertainty_metrics import (
    BoxOverlaps,
    Floats,
    grouped_spearman,
    log_size_and_aspect,
    pairwise_iou,
    sum_by_image,
)

Bools = NDArray[np.bool_]

BADLY_PLACED_IOU = 0.1
"""A detection with a smaller IoU with every object of its class is a detection of background."""
_L2_STRENGTH = 1.0
_EM_STEPS = 500
_MIN_RANDOM_IMAGES = 20
_BOOTSTRAP_SAMPLES = 200


class Outcome(IntEnum):
    """What a detection turned out to be."""

    RIGHT = 0
    WRONG_CLASS = 1
    DUPLICATE = 2
    """Of an object that a detection with a higher score had found."""
    BADLY_PLACED = 3
    BACKGROUND = 4


def detection_outcomes(
    boxes_N4: Floats, scores_N: Floats, class_ids_N: Ints, gt_boxes_G4: Floats, gt_class_ids_G: Ints
) -> tuple[Ints, Bools]:
    """Compare detections with labeled boxes.

    Matching is that of the realized loss: greedy by score, at IoU >= 0.5, whatever the class. An unmatched
    detection is a duplicate or badly placed by its IoU with the objects of its class.

    Returns:
        ``Outcome`` of each detection, (N,), and which labeled boxes were missed, (G,).
    """
    matched_N = match_detections(boxes_N4, scores_N, gt_boxes_G4)
    is_missed_G = ~np.isin(np.arange(len(gt_boxes_G4)), matched_N)
    outcome_N = np.full(len(boxes_N4), int(Outcome.BACKGROUND))
    if len(gt_boxes_G4):
        same_class_NG = class_ids_N[:, None] == gt_class_ids_G[None, :]
        iou_N = np.where(same_class_NG, pairwise_iou(boxes_N4, gt_boxes_G4), 0.0).max(axis=1)
        outcome_N[iou_N >= BADLY_PLACED_IOU] = Outcome.BADLY_PLACED
        outcome_N[iou_N >= 0.5] = Outcome.DUPLICATE
        is_right_N = class_ids_N == gt_class_ids_G[matched_N]
        outcome_N[matched_N >= 0] = np.where(is_right_N, Outcome.RIGHT, Outcome.WRONG_CLASS)[matched_N >= 0]
    return outcome_N, is_missed_G


def box_features(
    boxes_B4: Floats,
    scores_B: Floats,
    class_ids_B: Ints,
    class_probs_BK: Floats,
    entropy_B: Floats,
    stability_B: Floats,
    overlaps: BoxOverlaps,
    num_boxes_P: NDArray[np.int64],
    num_classes: int,
) -> Floats:
    """Compute what the error model knows of each detection, (B, F) with F = 12 + K.

    Log odds of the score, margin to the second class, background probability, entropy, highest IoU with another box,
    log number of neighbors, log size, log size against the image's mean, log aspect, log number of boxes, share of the
    image's boxes that have its class, stability under a second regression pass, and its class.

    Args:
        boxes_B4: the boxes of P images one after another, XYXY in px.
        scores_B: their scores.
        class_ids_B: their classes.
        class_probs_BK: their class probabilities, (B, K+1), background last; any shape without boxes.
        entropy_B: their ``posterior_entropy``.
        stability_B: IoU of each box with what a second regression pass makes of it; 1 where there was none.
        overlaps: their IoU, from ``box_overlaps``.
        num_boxes_P: boxes of each image; their sum is B.
        num_classes: K.
    """
    if len(scores_B) == 0:
        return np.zeros((0, 12 + num_classes))
    image_B = np.repeat(np.arange(len(num_boxes_P)), num_boxes_P)
    num_boxes_B = num_boxes_P[image_B]
    score_B = np.clip(scores_B.astype(np.float64), 1e-4, 1 - 1e-4)
    probs_KB = np.array(class_probs_BK.T, dtype=np.float32, order="C")  # maxima over the first axis are the fast ones
    background_B = probs_KB[-1].copy()
    probs_KB[class_ids_B, np.arange(len(scores_B))] = 0
    second_B = probs_KB[:-1].max(axis=0)
    log_size_B, log_aspect_B = log_size_and_aspect(boxes_B4)
    mean_log_size_P = sum_by_image(log_size_B, num_boxes_P) / np.maximum(num_boxes_P, 1)
    kind_B = image_B * num_classes + class_ids_B
    same_class_B = np.bincount(kind_B, minlength=len(num_boxes_P) * num_classes)[kind_B]
    rows = [
        np.log(score_B / (1 - score_B)),
        score_B - second_B,
        background_B,
        entropy_B,
        overlaps.max_B,
        np.log1p(overlaps.num_neighbors_B),
        log_size_B,
        log_size_B - mean_log_size_P[image_B],
        log_aspect_B,
        np.log(num_boxes_B),
        same_class_B / num_boxes_B,
        stability_B,
    ]
    features_FB = np.zeros((len(rows) + num_classes, len(scores_B)))
    for row_B, values_B in zip(features_FB, rows, strict=False):
        row_B[:] = values_B
    features_FB[len(rows) + class_ids_B, np.arange(len(scores_B))] = 1
    return features_FB.T


def inverse_frequency_weights(num_boxes_K: Ints, weight_max: float) -> Floats:
    """Compute class weights ``1 / (n_c + 1)``, bounded around their geometric mean, with mean 1 (docs/method.md#eq-25).

    Args:
        num_boxes_K: labeled boxes of each class.
        weight_max: bound before the mean is set to 1; its inverse is the lower one.
    """
    log_inverse_K = -np.log(num_boxes_K + 1.0)
    bounded_K = np.clip(np.exp(log_inverse_K - log_inverse_K.mean()), 1 / weight_max, weight_max)
    return np.asarray(bounded_K / bounded_K.mean())


@dataclass(frozen=True)
class LabeledDetections:
    """Detections on images that their teacher had not been trained on, and what people found there."""

    image_ids: list[str]  # P
    group_P: NDArray[np.int64]  # images of one teacher share a group
    num_boxes_P: NDArray[np.int64]
    features_BF: Floats
    class_ids_B: Ints
    outcome_B: Ints  # Outcome
    mass_P2: Floats  # sum of the scores below and above the reporting threshold (R, S)
    num_missed_PK: Ints  # missed objects of each class
    is_random_P: Bools  # drawn uniformly, not chosen

    def __len__(self) -> int:
        return len(self.image_ids)

    def subset(self, kept_P: Bools) -> "LabeledDetections":
        """Return the images where ``kept_P`` is true."""
        kept_B = np.repeat(kept_P, self.num_boxes_P)
        return LabeledDetections(
            [image_id for image_id, kept in zip(self.image_ids, kept_P, strict=True) if kept],
            self.group_P[kept_P],
            self.num_boxes_P[kept_P],
            self.features_BF[kept_B],
            self.class_ids_B[kept_B],
            self.outcome_B[kept_B],
            self.mass_P2[kept_P],
            self.num_missed_PK[kept_P],
            self.is_random_P[kept_P],
        )

    def miss_samples(self) -> tuple[Floats, Floats]:
        """Return the inputs (R, S) and the misses that the rate of misses is fitted to.

        Those of randomly drawn images where there are enough, since chosen images hold more misses; else of all.
        """
        enough = int(self.is_random_P.sum()) >= _MIN_RANDOM_IMAGES
        kept_P = self.is_random_P if enough else np.ones(len(self), dtype=bool)
        return self.mass_P2[kept_P], self.num_missed_PK[kept_P].sum(axis=1).astype(np.float64)


@dataclass(frozen=True)
class MissModel:
    """Expected number of missed objects of an image: ``a + b R + c S`` (docs/method.md#eq-26)."""

    coefficients_3: Floats  # each >= 0: constant, of residual mass R, of the sum of the reported scores S

    def expected_misses(self, mass_P2: Floats) -> Floats:
        """Compute the expected misses from (R, S) of each image, (P,)."""
        return np.asarray(_with_constant(mass_P2) @ self.coefficients_3)


def fit_miss_model(mass_P2: Floats, num_missed_P: Floats) -> MissModel:
    """Fit the coefficients by Poisson maximum likelihood with coefficients that are not negative.

    Expectation maximization: each missed object is divided between the terms in proportion to what they explain.
    Without an image the residual mass is taken at its word: R expected misses.
    """
    if len(num_missed_P) == 0:
        return MissModel(np.array([0.0, 1.0, 0.0]))
    terms_P3 = _with_constant(mass_P2)
    total_3 = terms_P3.sum(axis=0)
    coefficients_3 = np.where(total_3 > 0, 1.0, 0.0)
    for _ in range(_EM_STEPS):
        rate_P = np.maximum(terms_P3 @ coefficients_3, 1e-12)
        explained_3 = coefficients_3 * (terms_P3.T @ (num_missed_P / rate_P))
        coefficients_3 = np.divide(explained_3, total_3, out=np.zeros(3), where=total_3 > 0)
    return MissModel(coefficients_3)


def _with_constant(mass_P2: Floats) -> Floats:
    return np.column_stack([np.ones(len(mass_P2)), mass_P2])


@dataclass(frozen=True)
class BoxErrorModel:
    """Probability that a detection is wrong, and the misses of an image."""

    mean_F: Floats
    std_F: Floats
    coefficients_F: Floats
    intercept: float
    misses: MissModel
    miss_frac_K: Floats  # share of each class among missed objects; sums to 1

    def p_wrong(self, features_BF: Floats) -> Floats:
        """Compute the probability that each detection is not ``Outcome.RIGHT``, (B,)."""
        logits_B = (features_BF - self.mean_F) @ (self.coefficients_F / self.std_F) + self.intercept
        return np.asarray(1 / (1 + np.exp(-np.clip(logits_B, -30, 30))))

    def image_values(
        self,
        features_BF: Floats,
        class_ids_B: Ints,
        num_boxes_P: NDArray[np.int64],
        mass_P2: Floats,
        class_weight_K: Floats,
    ) -> Floats:
        """Compute the class-balanced number of errors expected in each image, (P,) >= 0 (docs/method.md#eq-27)."""
        wrong_P = sum_by_image(class_weight_K[class_ids_B] * self.p_wrong(features_BF), num_boxes_P)
        return np.asarray(wrong_P + self.misses.expected_misses(mass_P2) * float(class_weight_K @ self.miss_frac_K))


def fit_box_error_model(data: LabeledDetections) -> BoxErrorModel:
    """Fit both parts: logistic regression with an L2 penalty, and the rate of misses."""
    num_features = data.features_BF.shape[1]
    mean_F: Floats = np.zeros(num_features)
    std_F: Floats = np.ones(num_features)
    coefficients_F: Floats = np.zeros(num_features)
    intercept = 0.0
    is_wrong_B = data.outcome_B != Outcome.RIGHT
    if len(is_wrong_B):
        mean_F, spread_F = data.features_BF.mean(axis=0), data.features_BF.std(axis=0)
        std_F = np.where(spread_F > 1e-9, spread_F, 1.0)
        wrong_frac = (is_wrong_B.sum() + 1) / (len(is_wrong_B) + 2)
        intercept = float(np.log(wrong_frac / (1 - wrong_frac)))
    if is_wrong_B.any() and not is_wrong_B.all():
        from sklearn.linear_model import LogisticRegression  # seconds to import, so only where something is fitted

        regression = LogisticRegression(C=1 / _L2_STRENGTH, max_iter=1000)
        regression.fit((data.features_BF - mean_F) / std_F, is_wrong_B)
        coefficients_F, intercept = regression.coef_[0], float(regression.intercept_[0])
    num_missed_K = data.num_missed_PK.sum(axis=0)
    return BoxErrorModel(
        mean_F,
        std_F,
        coefficients_F,
        intercept,
        fit_miss_model(*data.miss_samples()),
        (num_missed_K + 1) / (num_missed_K + 1).sum(),
    )


class Calibration(NamedTuple):
    """How well held-out predictions agree with what people found; None where it cannot be said."""

    num_images: int
    num_detections: int
    wrong_frac: float | None
    auc: float | None
    brier: float | None
    brier_constant: float | None
    """Of the same probability for all detections."""
    expected_misses: float
    num_missed: int
    spearman: float | None
    """Of the image value with the realized loss, within the images of one teacher."""
    rival: str | None
    """The rule of a single metric or of equal weights that ranks best."""
    spearman_rival: float | None
    standard_error: float | None
    """Of the difference of the two correlations: bootstrap over images."""

    @property
    def beats_rival(self) -> bool:
        """Whether the value ranks better by more than one standard error."""
        if self.spearman is None or self.spearman_rival is None or self.standard_error is None:
            return False
        return self.spearman > self.spearman_rival + self.standard_error


def calibrate(
    data: LabeledDetections,
    class_weight_K: Floats,
    loss_P: Floats,
    rivals: dict[str, Floats],
    *,
    num_folds: int,
    seed: int,
) -> Calibration:
    """Judge the model on images that it was not fitted to: cross-fitting by image id.

    Args:
        data: images of all teachers.
        class_weight_K: weights of the classes in the value.
        loss_P: realized loss of each image.
        rivals: scores of the images by other rules, (P,) each.
        num_folds: parts that the images are split into.
        seed: of the split and of the bootstrap.
    """
    fold_P = folds_by_image(data.image_ids, num_folds, seed)
    p_wrong_B, value_P, misses_P = np.zeros(len(data.outcome_B)), np.zeros(len(data)), np.zeros(len(data))
    for fold in np.unique(fold_P):
        held_out_P = fold_P == fold
        model, held_out = fit_box_error_model(data.subset(~held_out_P)), data.subset(held_out_P)
        p_wrong_B[np.repeat(held_out_P, data.num_boxes_P)] = model.p_wrong(held_out.features_BF)
        misses_P[held_out_P] = model.misses.expected_misses(held_out.mass_P2)
        value_P[held_out_P] = model.image_values(
            held_out.features_BF, held_out.class_ids_B, held_out.num_boxes_P, held_out.mass_P2, class_weight_K
        )
    is_wrong_B = data.outcome_B != Outcome.RIGHT
    wrong_frac = float(is_wrong_B.mean()) if len(is_wrong_B) else None
    spearman_by_rule = {name: _spearman(score_P, loss_P, data.group_P) for name, score_P in rivals.items()}
    known = {name: found for name, found in spearman_by_rule.items() if found is not None}
    rival = max(known, key=lambda name: known[name]) if known else None
    auc = None
    if wrong_frac and wrong_frac < 1:
        from sklearn.metrics import roc_auc_score  # as above

        auc = float(roc_auc_score(is_wrong_B, p_wrong_B))
    return Calibration(
        num_images=len(data),
        num_detections=len(is_wrong_B),
        wrong_frac=wrong_frac,
        auc=auc,
        brier=float(np.mean((p_wrong_B - is_wrong_B) ** 2)) if len(is_wrong_B) else None,
        brier_constant=None if wrong_frac is None else wrong_frac * (1 - wrong_frac),
        expected_misses=float(misses_P.sum()),
        num_missed=int(data.num_missed_PK.sum()),
        spearman=_spearman(value_P, loss_P, data.group_P),
        rival=rival,
        spearman_rival=None if rival is None else known[rival],
        standard_error=None
        if rival is None
        else _standard_error_of_gain(value_P, rivals[rival], loss_P, data.group_P, seed),
    )


def folds_by_image(image_ids: Sequence[str], num_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign rows to balanced folds by image id, (P,); all rows of one image share a fold."""
    unique = sorted(set(image_ids))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_by_id = {image_id: int(place) % num_folds for image_id, place in zip(unique, order, strict=True)}
    return np.array([fold_by_id[image_id] for image_id in image_ids], dtype=np.int64)


def _spearman(score_P: Floats, loss_P: Floats, group_P: NDArray[np.int64]) -> float | None:
    return grouped_spearman([(score_P[group_P == g], loss_P[group_P == g]) for g in np.unique(group_P)])


def _standard_error_of_gain(
    value_P: Floats, rival_P: Floats, loss_P: Floats, group_P: NDArray[np.int64], seed: int
) -> float | None:
    """Bootstrap the difference of two rank correlations on the same images."""
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(_BOOTSTRAP_SAMPLES):
        drawn = rng.integers(0, len(loss_P), len(loss_P))
        ours = _spearman(value_P[drawn], loss_P[drawn], group_P[drawn])
        theirs = _spearman(rival_P[drawn], loss_P[drawn], group_P[drawn])
        if ours is not None and theirs is not None:
            gains.append(ours - theirs)
    return float(np.std(gains, ddof=1)) if len(gains) > 1 else None
