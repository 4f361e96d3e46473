"""Weighted box fusion of detections that several views or networks have of one image (docs/method.md#fusion).

Non-maximum suppression keeps one of several boxes; fusion averages them, and a box that few views have gets a lower
score (Solovyev, Wang and Gabruseva 2021).

Shape shorthand: R boxes of all views, C clusters of boxes that are taken for one object.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def fuse(views: Sequence[Instances], weights: Sequence[float], iou_threshold: float) -> Instances:
    """Fuse the detections of one image, each class by itself; the result comes by falling score.

    Args:
        views: detections by each view or network, with ``pred_boxes``, ``scores`` and ``pred_classes``; at least one.
        weights: of each view, positive.
        iou_threshold: a box joins the fused box of its class that it overlaps most, if by more than this.
    """
    first = views[0]
    weight_R = np.repeat(np.asarray(weights, dtype=np.float64), [len(one) for one in views])
    share_R = weight_R * _joined([one.scores for one in views])
    class_ids_R = torch.cat([one.pred_classes for one in views]).cpu().numpy()
    found = _cluster(_joined([one.pred_boxes.tensor for one in views]), share_R, class_ids_R, iou_threshold)
    # A cluster cannot count more often than there are views, though one view may have several boxes in it.
    score_C = found.share_C / sum(weights) * np.minimum(len(views) / found.count_C, 1.0)
    order_C = np.argsort(-score_C, kind="stable")
    fused = Instances(first.image_size)
    fused.pred_boxes = Boxes(torch.from_numpy(found.boxes_C4[order_C]).to(first.pred_boxes.tensor))
    fused.scores = torch.from_numpy(score_C[order_C]).to(first.scores)
    fused.pred_classes = torch.from_numpy(found.class_ids_C[order_C]).to(first.pred_classes)
    return fused


def _joined(parts: Sequence[Tensor]) -> _Floats:
    joined: _Floats = torch.cat(list(parts)).double().cpu().numpy()
    return joined


class _Clusters(NamedTuple):
    boxes_C4: _Floats
    """Mean of the cluster's boxes, weighted by their shares."""
    share_C: _Floats
    """Sum of their shares, which are a view's weight times its score."""
    count_C: _Ints
    class_ids_C: _Ints


def _cluster(boxes_R4: _Floats, share_R: _Floats, class_ids_R: _Ints, iou_threshold: float) -> _Clusters:
    """Take boxes one by one, by falling share: a cluster's box moves with each that joins, and the next meets that one.

    On a CPU, since on a GPU each box would start kernels for a few numbers.
    """
    sums_C4, boxes_C4, share_C = np.zeros_like(boxes_R4), np.zeros_like(boxes_R4), np.zeros_like(share_R)
    count_C, class_ids_C = np.zeros(len(share_R), dtype=np.int64), np.zeros_like(class_ids_R)
    size = 0
    for index in np.argsort(-share_R, kind="stable"):
        is_own_class_C = class_ids_C[:size] == class_ids_R[index]
        iou_C = np.where(is_own_class_C, _iou(boxes_R4[index], boxes_C4[:size]), 0.0)
        joined = int(iou_C.argmax()) if size else 0
        if size == 0 or iou_C[joined] <= iou_threshold:
            joined, size = size, size + 1
            class_ids_C[joined] = class_ids_R[index]
        sums_C4[joined] += share_R[index] * boxes_R4[index]
        share_C[joined] += share_R[index]
        count_C[joined] += 1
        boxes_C4[joined] = sums_C4[joined] / share_C[joined]
    return _Clusters(boxes_C4[:size], share_C[:size], count_C[:size], class_ids_C[:size])


def _iou(box_4: _Floats, others_C4: _Floats) -> _Floats:
    sides_C2 = np.minimum(box_4[2:], others_C4[:, 2:]) - np.maximum(box_4[:2], others_C4[:, :2])
    shared_C: _Floats = sides_C2.clip(min=0).prod(axis=1)
    areas_C: _Floats = (others_C4[:, 2:] - others_C4[:, :2]).prod(axis=1)
    return shared_C / ((box_4[2:] - box_4[:2]).prod() + areas_C - shared_C)
