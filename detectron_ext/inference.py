"""A detector over images, results in pixels of the original.

Shape shorthand: N detections of one image, K foreground classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from numpy.typing import NDArray

from detectron_ext.augmentation import AugmentationConfig, Pixels, model_input, resize
from detectron_ext.meta_arch import PerImageRCNN, autocast


@dataclass(frozen=True)
class Detections:
    """What the detector reports for one image (METHOD section 1), by descending score."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4) px of the original image
    scores: NDArray[np.float32]  # (N,) largest foreground posterior
    class_ids: NDArray[np.int64]  # (N,) its class
    class_probs: NDArray[np.float32]  # (N, K+1), sums to 1, background last
    embedding: NDArray[np.float32]  # (C,)

    def filter_by_score(self, min_score: float) -> "Detections":
        """Only the detections with at least this score."""
        kept = self.scores >= min_score
        return Detections(
            self.boxes_xyxy[kept], self.scores[kept], self.class_ids[kept], self.class_probs[kept], self.embedding
        )


@torch.inference_mode()
def detect(
    model: PerImageRCNN, images: Sequence[Pixels], augmentation: AugmentationConfig, mixed_precision: bool = True
) -> list[Detections]:
    """Detections of RGB images of any sizes, in one batch.

    Args:
        model: in eval mode.
        images: each (H, W, 3) uint8.
        augmentation: only the sides are used.
        mixed_precision: on CUDA; without effect on a CPU.
    """
    inputs = [model_input(resize(pixels, augmentation)[0]) for pixels in images]
    with autocast(str(model.device), mixed_precision):
        outputs = model(inputs)
    return [
        _to_original_size(instances, embedding, pixels.shape[0], pixels.shape[1])
        for (instances, embedding), pixels in zip(outputs, images, strict=True)
    ]


def _to_original_size(instances: Any, embedding: torch.Tensor, height_px: int, width_px: int) -> Detections:
    scaled = detector_postprocess(instances, height_px, width_px)
    return Detections(
        scaled.pred_boxes.tensor.float().cpu().numpy(),
        scaled.scores.float().cpu().numpy(),
        scaled.pred_classes.cpu().numpy(),
        scaled.class_probs.float().cpu().numpy(),
        embedding.float().cpu().numpy(),
    )
