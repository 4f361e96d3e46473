"""Describe detected regions: features of their content, and how far a second regression pass would move their boxes.

Shape letters: N detections of one image, R detections over the batch, K foreground classes, F features of the box head,
D dimensions of a region feature, C classes that were detected on the image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from numpy.typing import NDArray
from torch import Tensor

REGION_DIM = 64
_PROJECTION_SEED = 0


def projection(num_features: int) -> Tensor:
    """Return the matrix (F, D) that region features are projected with; the same on every machine.

    A random Gaussian matrix keeps distances in expectation (Johnson and Lindenstrauss 1984), and unlike principal
    components it needs no pass over the pool.
    """
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    return torch.randn(num_features, REGION_DIM, generator=generator) / REGION_DIM**0.5


def describe_regions(
    instances: Sequence[Instances], region_features_RF: Tensor, refined_boxes_R4: Tensor, projection_FD: Tensor
) -> None:
    """Add ``region_features`` (N, D) and ``stability`` (N,) to the detections of every image.

    Args:
        instances: detections of each image, in pixels of the model's input.
        region_features_RF: features of the box head, pooled from the detected boxes.
        refined_boxes_R4: the boxes that a second regression pass makes of the detected ones.
        projection_FD: see ``projection``.
    """
    sizes = [len(image) for image in instances]
    features = torch.split(region_features_RF.float() @ projection_FD, sizes)
    for image, image_features, refined in zip(instances, features, torch.split(refined_boxes_R4, sizes), strict=True):
        boxes = Boxes(refined.clone())
        boxes.clip(image.image_size)
        image.region_features = image_features
        image.stability = matched_pairwise_iou(image.pred_boxes, boxes)


def sum_by_class(
    region_features_ND: NDArray[np.float32], scores_N: NDArray[np.float32], class_ids_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sum the features of an image's regions by class, weighted by score.

    Returns:
        The detected classes (C,), ascending, and ``sum_i s_i f_i`` over the detections of each, (C, D).
    """
    classes_C, index_N = np.unique(class_ids_N, return_inverse=True)
    sums_CD = np.zeros((len(classes_C), region_features_ND.shape[1]), dtype=np.float32)
    np.add.at(sums_CD, index_N, region_features_ND * scores_N[:, None])
    return classes_C, sums_CD
