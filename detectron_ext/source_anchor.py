"""Holds the student near a source teacher that stays as it was (docs/method.md#source-anchor).

Shape shorthand: N images, R regions over the images, K foreground classes; index K is background.
"""

from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.meta_arch import PerImageRCNN

MAX_REGIONS = 64
"""Proposals of an image that are compared, those with the largest objectness first: objects and background."""
_PROBE_RMS = 1.0
"""Of the random perturbation at which the gradient is taken: where the student is the source it is 0 without one."""


class _Region(NamedTuple):
    """Regions of one image as the source sees them."""

    boxes: Boxes
    log_p_RK: Tensor


class SourceAnchor:
    """Compares class posteriors of the student with those of a network that training started from."""

    def __init__(self, source: PerImageRCNN, weight: float, perturbation_rms: float) -> None:
        """Keep the network.

        Args:
            source: in eval mode, never changed; of the student's architecture and classes.
            weight: of the loss.
            perturbation_rms: root mean square of the perturbation of an image, in gray levels; 0: no perturbation.
        """
        self.weight = weight
        self._source, self._perturbation_rms = source, perturbation_rms

    def losses(self, student: PerImageRCNN, weak_inputs: list[dict[str, Any]]) -> Tensor:
        """Return the mean divergence over the regions of each image, (N,), before the weight.

        The source sees the image as it is; the student sees it moved to where, by one step of the gradient, it differs
        most from the source (one power iteration of virtual adversarial training).
        """
        regions = self._regions(weak_inputs)
        images = [one["image"].to(student.device).float() for one in weak_inputs]
        if self._perturbation_rms == 0:
            return _divergences(student, images, regions)
        probes = [(image + _with_rms(torch.randn_like(image), _PROBE_RMS)).requires_grad_() for image in images]
        gradients = torch.autograd.grad(_divergences(student, probes, regions).sum(), probes)
        moved = [
            image + _with_rms(gradient, self._perturbation_rms)
            for image, gradient in zip(images, gradients, strict=True)
        ]
        return _divergences(student, moved, regions)

    @torch.no_grad()
    def _regions(self, weak_inputs: list[dict[str, Any]]) -> list[_Region]:
        source = self._source

        def look(indices: list[int]) -> list[_Region]:
            images = source.preprocess_image([weak_inputs[index] for index in indices])
            features = source.backbone(images.tensor)
            proposals, _ = source.proposal_generator(images, features, None)
            boxes = [image.proposal_boxes[:MAX_REGIONS] for image in proposals]
            found = source.roi_heads.region_features(features, boxes)
            return [_Region(*both) for both in zip(boxes, _log_posteriors(source, found), strict=True)]

        return source.map_by_padded_shape(weak_inputs, look)


def _divergences(student: PerImageRCNN, images: list[Tensor], regions: list[_Region]) -> Tensor:
    """Return the mean over regions of the Kullback-Leibler divergence of the student from the source, (N,).

    Image by image: Detectron2 pads several in place, which lets no gradient through to their pixels.
    """
    losses = []
    for image, one in zip(images, regions, strict=True):
        [log_q_RK] = _log_posteriors(student, student.region_features([{"image": image}], [one.boxes]))
        divergence = F.kl_div(log_q_RK, one.log_p_RK, reduction="sum", log_target=True)
        losses.append(divergence / max(len(log_q_RK), 1))
    return torch.stack(losses)


def _log_posteriors(network: PerImageRCNN, features: list[Tensor]) -> list[Tensor]:
    logits_RK, _ = network.roi_heads.box_predictor(torch.cat(features))
    log_p_RK = F.log_softmax(logits_RK.float(), dim=1)
    return list(torch.split(log_p_RK, [len(own_RF) for own_RF in features]))


def _with_rms(direction: Tensor, rms: float) -> Tensor:
    """Scale to a root mean square; a direction of 0 stays 0."""
    own_rms = direction.square().mean().sqrt()
    return direction * (rms / own_rms.clamp(min=torch.finfo(torch.float32).tiny))
