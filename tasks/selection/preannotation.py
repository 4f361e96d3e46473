"""Draw the teacher's boxes for annotators to correct: one for each object (docs/method.md#pre-drawn-boxes)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import Floats, pairwise_iou
from tasks.data.schemas import Prediction, RunnerUp
from tasks.params.stages import PreannotationParams

Ints = NDArray[np.int64]
_DECIMALS_PX = 2
_DECIMALS_DOUBT = 4

Row = Mapping[str, Any]


def predrawn_boxes(
    detected: Row, image: Row, classes: Sequence[str], params: PreannotationParams
) -> tuple[Prediction, ...]:
    """Return the boxes to draw on an image, the surest first.

    Args:
        detected: its row of schemas.DETECTIONS.
        image: its ``width_px`` and ``height_px``.
        classes: class names in the order of their indices.
        params: score a detection needs to be drawn, and overlap up to which two boxes are two objects.
    """
    drawn = suppress_overlapping(
        np.array(detected["boxes_xyxy"], dtype=np.float64).reshape(-1, 4),
        np.array(detected["scores"], dtype=np.float64),
        np.array(detected["class_ids"], dtype=np.int64),
        np.array(detected["class_probs"], dtype=np.float64).reshape(len(detected["scores"]), len(classes) + 1),
        params.score_threshold,
        params.suppress_iou,
    )
    predictions = [
        Prediction(
            category=classes[detected["class_ids"][n]],
            xyxy_px=clip_box(detected["boxes_xyxy"][4 * n : 4 * n + 4], image),
            score=_probability(detected["scores"][n]),
            doubt=_doubt(detected, n),
            runner_up=None if runner_up is None else RunnerUp(category=classes[runner_up[0]], score=runner_up[1]),
        )
        for n, runner_up in drawn
    ]
    non_empty = [p for p in predictions if p.xyxy_px[0] < p.xyxy_px[2] and p.xyxy_px[1] < p.xyxy_px[3]]
    return tuple(sorted(non_empty, key=lambda p: (-p.score, p.category, p.xyxy_px)))


def suppress_overlapping(
    boxes_N4: Floats,
    scores_N: Floats,
    class_ids_N: Ints,
    class_probs_NK: Floats,
    score_threshold: float,
    suppress_iou: float,
) -> list[tuple[int, tuple[int, float] | None]]:
    """Choose one detection for each object, whatever the classes (docs/method.md#pre-drawn-boxes).

    Args:
        boxes_N4: corners x1, y1, x2, y2.
        scores_N: of the detections.
        class_ids_N: index of the likeliest class.
        class_probs_NK: (N, K+1) posteriors, background last.
        score_threshold: detections with a lower score take no part, classes with a lower one are not named.
        suppress_iou: with a larger IoU two detections are one object.

    Returns:
        Detections by falling score; with each the next likeliest class, with its score: the largest among the
        detection's own posterior and the scores of those it stands for.
    """
    num_classes = class_probs_NK.shape[1] - 1
    order = [n for n in np.argsort(-scores_N, kind="stable").tolist() if scores_N[n] >= score_threshold]
    iou_NN = pairwise_iou(boxes_N4, boxes_N4)
    drawn: list[tuple[int, tuple[int, float] | None]] = []
    while order:
        best = order[0]
        absorbed = [n for n in order[1:] if iou_NN[best, n] > suppress_iou]
        score_K = class_probs_NK[best, :num_classes].copy()
        np.maximum.at(score_K, class_ids_N[absorbed], scores_N[absorbed])
        score_K[class_ids_N[best]] = -1.0
        second = int(score_K.argmax())
        # The order of classes follows the scores, so the runner-up is never likelier than the class that is drawn.
        named = (
            (second, _probability(min(score_K[second], scores_N[best]))) if score_K[second] >= score_threshold else None
        )
        drawn.append((best, named))
        order = [n for n in order[1:] if n not in absorbed]
    return drawn


def _doubt(detected: Row, n: int) -> float:
    """1 - s q: doubt that class and place of a detection are right (docs/method.md#box-doubt)."""
    stability = detected["stability"] or [1.0] * len(detected["scores"])
    return round(1 - _probability(detected["scores"][n]) * _probability(stability[n]), _DECIMALS_DOUBT)


def _probability(score: float) -> float:
    return min(max(float(score), 0.0), 1.0)


def clip_box(box: Sequence[float], image: Row) -> tuple[float, float, float, float]:
    """Round the corners and clip them to the image: label tools refuse a box that exceeds it by a rounding error."""
    x1, y1, x2, y2 = (round(corner, _DECIMALS_PX) for corner in box)
    width, height = float(image["width_px"]), float(image["height_px"])
    return max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
