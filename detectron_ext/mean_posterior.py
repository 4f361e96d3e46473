"""Detections of the first of several teachers, by the mean of all their posteriors (docs/method.md#several-teachers).

Shape shorthand: R proposals over the images of a group, K foreground classes; index K is background.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from detectron_ext.meta_arch import PerImageRCNN


@torch.no_grad()
def detect_by_mean_posterior(teachers: Sequence[PerImageRCNN], inputs: list[dict[str, Any]]) -> list[Instances]:
    """Return the detections of every image, in the given order, as ``PerImageRCNN`` does.

    Places and boxes are the first teacher's. Of each of its proposals every teacher gives a class posterior; their
    mean gives class and score, before non-maximum suppression.

    Args:
        teachers: in eval mode, of one architecture; at least one.
        inputs: Detectron2 inputs, at least one.
    """
    return teachers[0].map_by_padded_shape(
        inputs, lambda indices: _detect_group(teachers, [inputs[index] for index in indices])
    )


def _detect_group(teachers: Sequence[PerImageRCNN], inputs: list[dict[str, Any]]) -> list[Instances]:
    """Detect in images that are padded to the same shape."""
    first = teachers[0]
    images = first.preprocess_image(inputs)
    features = first.backbone(images.tensor)
    proposals, _ = first.proposal_generator(images, features, None)
    logits_RK, deltas = _predict(first, features, proposals)
    posteriors = [logits_RK.float().softmax(dim=1)]
    for teacher in teachers[1:]:
        further_logits_RK, _ = _predict(teacher, teacher.backbone(images.tensor), proposals)
        posteriors.append(further_logits_RK.float().softmax(dim=1))
    mean_RK = torch.split(torch.stack(posteriors).mean(dim=0), [len(image) for image in proposals])
    predictor = first.roi_heads.box_predictor
    boxes = predictor.predict_boxes((logits_RK, deltas.float()), proposals)
    return [
        predictor.keep_best(own_boxes, own_probs, image.image_size)[0]
        for own_boxes, own_probs, image in zip(boxes, mean_RK, proposals, strict=True)
    ]


def _predict(teacher: PerImageRCNN, features: dict[str, Tensor], proposals: list[Instances]) -> tuple[Tensor, Tensor]:
    """Return the class logits (R, K+1) and box deltas of the proposals."""
    heads = teacher.roi_heads
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [p.proposal_boxes for p in proposals])
    logits_RK, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits_RK, deltas
