"""The teacher as MLflow serves it: pictures in, boxes with class names out.

MLflow runs this file when it loads the model, so importing it must not need torch; the first prediction does.
"""

import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from tasks.data.image_decoding import open_rgb
from tasks.params import load_stage_params

_CHANNELS = 3


class PyfuncDetector(PythonModel):
    """A teacher with the parameters it was trained under."""

    def load_context(self, context: PythonModelContext) -> None:
        """Remember where the artifacts are."""
        self._teacher_path = Path(context.artifacts["teacher"])
        self._params = load_stage_params(Path(context.artifacts["params"]), "classes", "model", "train")
        self._detector: Any = None

    def predict(
        self, context: PythonModelContext, model_input: list[Any], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detect objects.

        Args:
            context: unused.
            model_input: pictures: encoded bytes, a path, or an RGB array (H, W, 3) uint8 each.
            params: unused.

        Returns:
            For each picture ``boxes_xyxy_px`` (pixels of the original), ``classes`` and ``scores``, by
            descending score.

        Raises:
            ValueError: an array of another shape or type.
        """
        from tasks.model.detector import detect, load_detector

        if self._detector is None:
            self._detector = load_detector(self._params.model, len(self._params.classes), self._teacher_path)
        results = []
        for image in model_input:  # one at a time: pictures of any size in little memory
            pixels, mixed_precision = _to_rgb(image), self._params.train.mixed_precision
            detections = detect(self._detector, [pixels], self._params.model, mixed_precision)[0]
            results.append(
                {
                    "boxes_xyxy_px": detections.boxes_xyxy.tolist(),
                    "classes": [self._params.classes[label] for label in detections.class_ids],
                    "scores": detections.scores.tolist(),
                }
            )
        return results


def _to_rgb(source_image: Any) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) uint8; encoded images by the rules of ``open_rgb``, arrays as given."""
    if isinstance(source_image, np.ndarray):
        if source_image.dtype != np.uint8 or source_image.ndim != _CHANNELS or source_image.shape[2] != _CHANNELS:
            raise ValueError(f"picture is {source_image.dtype} {source_image.shape}, expected uint8 (H, W, 3), RGB")
        return source_image
    source = io.BytesIO(source_image) if isinstance(source_image, bytes | bytearray) else Path(source_image)
    return np.asarray(open_rgb(source))


mlflow.models.set_model(PyfuncDetector())
