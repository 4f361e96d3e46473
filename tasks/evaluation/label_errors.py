"""Find labels that contradict the detections on their image (docs/method.md#label-errors).

After ObjectLab (Tkachenko, Thyagarajan and Mueller, ObjectLab: automated diagnosis of mislabeled images in object
detection data, arXiv:2309.00832), with the score of a detection as a factor in place of its two thresholds: detectors
that saw few labels seldom reach 0.95.

Shape letters: N detections, G labeled boxes of one image.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import Floats, pairwise_iou

Ints = NDArray[np.int64]
ErrorKind = Literal["missing", "misplaced", "swapped"]
MIN_IOU = 0.1
"""A detection and a labeled box that overlap less are not about the same object."""


@dataclass(frozen=True)
class LabelError:
    """A labeled box, or the absence of one, that the detections contradict."""

    kind: ErrorKind
    strength: float
    """How surely the label is wrong, in [0, 1]."""
    class_id: int
    """What the detection claims."""
    box_xyxy: tuple[float, float, float, float]
    """Where: of a missing label the detection, else the labeled box; px."""


def find_label_errors(
    boxes_N4: Floats,
    scores_N: Floats,
    class_ids_N: Ints,
    stability_N: Floats,
    labels_G4: Floats,
    label_ids_G: Ints,
) -> list[LabelError]:
    """List what contradicts the labels of one image, the surest error first.

    Args:
        boxes_N4: corners of the detections, px; those in crowd regions left out.
        scores_N: their scores, [0, 1].
        class_ids_N: their classes.
        stability_N: their overlap with a second regression pass, [0, 1].
        labels_G4: corners of the labeled boxes, px.
        label_ids_G: their classes.
    """
    iou_NG = pairwise_iou(boxes_N4, labels_G4)
    same_NG = class_ids_N[:, None] == label_ids_G[None, :]
    found = [
        *_missing(boxes_N4, scores_N, class_ids_N, stability_N, iou_NG),
        *_misplaced(class_ids_N, scores_N, labels_G4, iou_NG, same_NG),
        *_swapped(class_ids_N, scores_N, labels_G4, iou_NG, same_NG),
    ]
    return sorted(found, key=lambda error: (-error.strength, error.kind, error.box_xyxy))


def _missing(
    boxes_N4: Floats, scores_N: Floats, class_ids_N: Ints, stability_N: Floats, iou_NG: Floats
) -> list[LabelError]:
    """A detection where no label of any class lies: s q (1 - largest IoU with a surer detection).

    One that overlaps a surer one is a second look at the same object rather than an object that was forgotten.
    """
    is_surer_NN = scores_N[None, :] > scores_N[:, None]
    repeated_N = np.where(is_surer_NN, pairwise_iou(boxes_N4, boxes_N4), 0.0).max(axis=1, initial=0.0)
    strength_N = scores_N * stability_N * (1 - repeated_N)
    return [
        LabelError("missing", float(strength_N[n]), int(class_ids_N[n]), _corners(boxes_N4[n]))
        for n in np.flatnonzero(iou_NG.max(axis=1, initial=0.0) < MIN_IOU)
    ]


def _misplaced(
    class_ids_N: Ints, scores_N: Floats, labels_G4: Floats, iou_NG: Floats, same_NG: NDArray[np.bool_]
) -> list[LabelError]:
    """The detection of the label's class that fits it best fits badly: s (1 - IoU).

    A detection that fits another label of its class better is about that one.
    """
    fit_NG = np.where(same_NG, iou_NG, 0.0)
    is_own_NG = (fit_NG >= MIN_IOU) & (fit_NG == fit_NG.max(axis=1, initial=0.0, keepdims=True))
    evidence_NG = np.where(is_own_NG, scores_N[:, None] * fit_NG, 0.0)
    found = []
    for g in range(len(labels_G4)):
        if evidence_NG[:, g].max(initial=0.0) > 0:
            n = int(evidence_NG[:, g].argmax())
            strength = float(scores_N[n] * (1 - fit_NG[n, g]))
            found.append(LabelError("misplaced", strength, int(class_ids_N[n]), _corners(labels_G4[g])))
    return found


def _swapped(
    class_ids_N: Ints, scores_N: Floats, labels_G4: Floats, iou_NG: Floats, same_NG: NDArray[np.bool_]
) -> list[LabelError]:
    """A detection of another class fits the label better than any of its own: s' IoU' - s IoU."""
    weight_NG = scores_N[:, None] * iou_NG
    other_NG, own_NG = np.where(same_NG, 0.0, weight_NG), np.where(same_NG, weight_NG, 0.0)
    # A neighbor of another class explains its own label first.
    own_of_N = own_NG.max(axis=1, initial=0.0)
    other_NG = np.where(own_of_N[:, None] >= other_NG, 0.0, other_NG)
    found = []
    for g in range(len(labels_G4)):
        strength = other_NG[:, g].max(initial=0.0) - own_NG[:, g].max(initial=0.0)
        if strength > 0:
            n = int(other_NG[:, g].argmax())
            found.append(LabelError("swapped", float(strength), int(class_ids_N[n]), _corners(labels_G4[g])))
    return found


def _corners(box_4: Floats) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(corner) for corner in box_4)
    return x1, y1, x2, y2
