"""Simulate annotators with known ground truth: the oracle of active-learning experiments.

Reads ``oracle/annotations.parquet`` and nothing else. The same delivery always returns the same labels, so a campaign
can be repeated to the byte.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, RawAnnotation
from tasks.data.annotations import read_annotated
from tasks.params.stages import BudgetParams
from tasks.runtime.errors import UserError


class OracleProvider:
    """Returns the ground truth of every image at once, with the annotation time of the budget parameters."""

    name = "oracle"

    def __init__(self, oracle: Path, classes: Sequence[str], budget: BudgetParams) -> None:
        """Keep the path of the ground truth, its class names in the order of their ids, and the annotation cost."""
        self._oracle = oracle
        self._classes = list(classes)
        self._budget = budget

    def check(self) -> None:
        """Refuse a campaign without ground truth.

        Raises:
            UserError: the file is missing.
        """
        if not self._oracle.is_file():
            raise UserError(
                self._oracle,
                "the file is missing, expected the ground truth of the pool",
                "Create the campaign with gleaner init --oracle.",
            )

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Return the key of the batch; there is nothing to send."""
        self.check()
        return delivery.key

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count every image as finished."""
        return LabelingProgress(finished=len(delivery.image_ids), open=0)

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Do nothing: no image is ever open."""

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return the ground truth; an image without any comes back as skipped."""
        self.check()
        boxes_by_image = {image.image_id: image.boxes for image in read_annotated(self._oracle, self._classes)}
        raw_annotations: list[RawAnnotation] = []
        for image_id in delivery.image_ids:
            boxes = boxes_by_image.get(image_id)
            seconds = self._duration(boxes)
            raw_annotations.append(
                {
                    "image_id": image_id,
                    "status": "skipped" if boxes is None else "labeled" if boxes else "empty",
                    "boxes": [box.model_dump() for box in boxes or ()],
                    "annotator": self.name,
                    "finished_at": delivery.created_at,
                    "seconds_spent": seconds,
                }
            )
        return raw_annotations

    def _duration(self, boxes: Sequence[object] | None) -> float:
        if boxes is None:
            return 0.0
        return round(60 * (self._budget.minutes_per_image + len(boxes) * self._budget.minutes_per_box), 1)
