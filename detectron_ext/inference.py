"""A detector applied to images, with results in pixels of the original.

Shape shorthand: N detections of one image, K foreground classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from numpy.typing import NDArray
from torch import Tensor

from detectron_ext.augmentation import AugmentationConfig, Pixels, model_input, resize
from detectron_ext.meta_arch import PerImageRCNN, autocast
from detectron_ext.objectness_doubt import ObjectnessDoubt, coarse_map, top_share_mean


@dataclass(frozen=True)
class Detections:
    """What the detector reports for one image (docs/method.md#eq-1), by descending score."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4) px of the original image
    scores: NDArray[np.float32]  # (N,) largest foreground posterior
    class_ids: NDArray[np.int64]  # (N,) its class
    class_probs: NDArray[np.float32]  # (N, K+1), sums to 1, background last
    embedding: NDArray[np.float32]  # (C,)
    stability: NDArray[np.float32]  # (N,) IoU with the box of a second regression pass; (0,) where there was none
    region_features: NDArray[np.float32]  # (N, D); (0, 0) where there was no second pass
    doubt: ObjectnessDoubt | None = None  # of the proposal network, where it is measured

    def filter_by_score(self, min_score: float) -> "Detections":
        """Keep the detections with at least this score."""
        kept = self.scores >= min_score
        has_regions = len(self.stability) == len(kept)
        return Detections(
            self.boxes_xyxy[kept],
            self.scores[kept],
            self.class_ids[kept],
            self.class_probs[kept],
            self.embedding,
            self.stability[kept] if has_regions else self.stability,
            self.region_features[kept] if has_regions else self.region_features,
            self.doubt,
        )


@dataclass(frozen=True)
class PreparedImage:
    """An image in the size the model sees it."""

    model_input: dict[str, Any]
    """Detectron2's: ``image`` (3, H, W) uint8."""
    height_px: int
    """Of the original."""
    width_px: int
    """Of the original."""


def prepare_image(pixels: Pixels, augmentation: AugmentationConfig) -> PreparedImage:
    """Resize an RGB image (H, W, 3) uint8 for the model; only the sides of ``augmentation`` are used."""
    return PreparedImage(model_input(resize(pixels, augmentation)[0]), pixels.shape[0], pixels.shape[1])


@torch.inference_mode()
def detect(
    model: PerImageRCNN, images: Sequence[PreparedImage], mixed_precision: bool, doubt_frac: float = 0.0
) -> list[Detections]:
    """Detect objects on images of any sizes; results do not depend on what else is in the batch.

    Args:
        model: in eval mode.
        images: at least one.
        mixed_precision: on CUDA; without effect on a CPU.
        doubt_frac: of ``top_share_mean``; 0: the doubt of the proposal network is not measured.
    """
    inputs = [image.model_input for image in images]
    doubts: list[ObjectnessDoubt | None] = [None] * len(images)
    with autocast(str(model.device), mixed_precision):
        if doubt_frac > 0:
            outputs = model.detect_with_doubt(inputs)
            doubts = [ObjectnessDoubt(top_share_mean(one[2], doubt_frac), coarse_map(one[2])) for one in outputs]
        else:
            outputs = model(inputs)
    found = [
        detector_postprocess(output[0], image.height_px, image.width_px)
        for output, image in zip(outputs, images, strict=True)
    ]
    sizes = [len(instances) for instances in found]
    boxes, scores, class_ids, class_probs = (
        _to_numpy([getattr(instances, name) for instances in found], sizes)
        for name in ("pred_boxes", "scores", "pred_classes", "class_probs")
    )
    embeddings = torch.stack([output[1] for output in outputs]).float().cpu().numpy()
    if model.roi_heads.describes_regions:
        stability, regions = (
            _to_numpy([getattr(instances, name) for instances in found], sizes)
            for name in ("stability", "region_features")
        )
    else:
        stability, regions = [np.zeros(0, np.float32)] * len(found), [np.zeros((0, 0), np.float32)] * len(found)
    columns = zip(boxes, scores, class_ids, class_probs, embeddings, stability, regions, doubts, strict=True)
    return [Detections(*arrays) for arrays in columns]


def _to_numpy(values: Sequence[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    """One array per image, all images copied from the device at once."""
    tensors = [value if isinstance(value, Tensor) else value.tensor for value in values]
    joined = torch.cat(tensors)
    joined = (joined.float() if joined.is_floating_point() else joined).cpu()
    return [part.numpy() for part in torch.split(joined, list(sizes))]
