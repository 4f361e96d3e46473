"""Describe what the detector sees: detected regions by the box head's features, a whole image by the backbone's body.

Shape letters: N detections of one image, or images; R detections over the batch, K foreground classes, F features of
the box head, C classes that were detected on the image, or channels of a stage; D dimensions of a region feature, or of
a stage's share.

The pyramid's coarse levels are no description of an image: where no object is that large, the detector learns to output
the same for all images there. On the demo's digits 97 % of the variance of the mean of level p5 were the image's aspect
ratio.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_Stage = TypeVar("_Stage")
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
        describe_image_regions(image, image_features, refined)


def describe_image_regions(image: Instances, projected_ND: Tensor, refined_boxes_N4: Tensor) -> None:
    """Add what ``describe_regions`` adds to the detections of one image, whose features are projected already."""
    boxes = Boxes(refined_boxes_N4.clone())
    boxes.clip(image.image_size)
    image.region_features = projected_ND
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


_NUM_STAGES = 3
EMBEDDING_DIM = _NUM_STAGES * REGION_DIM


@contextmanager
def recorded_stages(body: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the output of the body's next pass, its stages from fine to coarse."""
    stages: dict[str, Tensor] = {}

    def record(_module: nn.Module, _inputs: object, outputs: Mapping[str, Tensor]) -> None:
        stages.update(outputs)

    handle = body.register_forward_hook(record)
    try:
        yield stages
    finally:
        handle.remove()


def embed_images(stages: Mapping[str, Tensor], projection_of: Callable[[int], Tensor] = projection) -> Tensor:
    """Average each of the three coarsest stages over the image, scale it to length 1 and project it, (N, 3 D).

    Each stage has the same share, whatever its channels and the size of its values.

    Args:
        stages: maps (N, C, H, W), from fine to coarse, of images that are padded alike.
        projection_of: gives the matrix (C, D) of a number of channels: ``projection``, or what it gave before, which a
            trace needs.
    """
    shares = []
    for stage in described_stages(list(stages.values())):
        mean_NC = F.normalize(stage.float().mean(dim=(2, 3)), dim=1)
        shares.append(mean_NC @ projection_of(int(mean_NC.shape[1])).to(mean_NC.device))
    return torch.cat(shares, dim=1)


def described_stages(stages: Sequence[_Stage]) -> Sequence[_Stage]:
    """Return those of the stages, ordered from fine to coarse, that have a share in an embedding."""
    return stages[-_NUM_STAGES:]
