"""An export as MLflow serves it: pictures in, boxes with class names out, without torch and without Gleaner.

MLflow runs this file when it loads the model, so importing it must need nothing that the export does not.
"""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class PyfuncExport(PythonModel):
    """The detector in the artifact ``export``."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network by the program that came with it."""
        folder = Path(context.artifacts["export"])
        sys.path.append(str(folder / "detect.pyz"))  # behind an installed Gleaner, which has the same module
        from tasks.export.runtime import ExportedDetector

        self._detector = ExportedDetector(folder)

    def predict(
        self, context: PythonModelContext, model_input: list[Any], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detect objects.

        Args:
            context: unused.
            model_input: pictures: encoded bytes, a path, or an RGB array (H, W, 3) uint8 each.
            params: ``min_score``, the lowest score of a detection; without it, that of the export.

        Returns:
            For each picture ``boxes_xyxy_px`` (pixels of the original), ``classes`` and ``scores``, best first.
        """
        min_score = (params or {}).get("min_score")
        results = []
        for image in model_input:
            is_given = isinstance(image, bytes | np.ndarray)
            found = self._detector.detect(image if is_given else Path(image), min_score)
            results.append(
                {
                    "boxes_xyxy_px": found.boxes_xyxy_px.tolist(),
                    "classes": [self._detector.classes[class_id] for class_id in found.class_ids],
                    "scores": found.scores.tolist(),
                }
            )
        return results


mlflow.models.set_model(PyfuncExport())
