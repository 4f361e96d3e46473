"""A detector that another library than torch runs, with the results of ``inference.detect``.

Shape shorthand: N detections of one image, K foreground classes, D dimensions of a region feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectron_ext.config import MIN_SCORE
from detectron_ext.inference import Detections, PreparedImage


@dataclass(frozen=True)
class CompiledDetector:
    """The graph that ``export.write_onnx`` writes with descriptions, loaded; it sees one image after the other."""

    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]
    """From a resized RGB image (H, W, 3) to ``export.OUTPUT_NAMES`` and ``export.DESCRIPTION_NAMES``."""

    def detect(self, images: Sequence[PreparedImage]) -> list[Detections]:
        """Detect objects on images of any sizes, as ``inference.detect``."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: PreparedImage) -> Detections:
        pixels = np.ascontiguousarray(image.model_input["image"].permute(1, 2, 0).numpy())
        boxes, scores, class_ids, class_probs, embedding, stability, region_features = self.run(pixels)
        height_px, width_px = pixels.shape[:2]
        scale = np.array([image.width_px / width_px, image.height_px / height_px] * 2, dtype=np.float32)
        limits = np.array([image.width_px, image.height_px] * 2, dtype=np.float32)
        boxes_N4 = np.clip(boxes * scale, 0, limits)
        # Where no proposal reaches the least score, OpenVINO's NMS gives the first one in the place of none.
        kept = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(axis=1) & (scores > MIN_SCORE)
        return Detections(
            boxes_N4[kept],
            scores[kept],
            class_ids[kept].astype(np.int64),
            class_probs[kept],
            embedding,
            stability[kept],
            region_features[kept],
        )
