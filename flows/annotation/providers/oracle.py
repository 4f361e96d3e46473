"""Simulate annotators with known ground truth: the oracle of active-learning experiments.

Reads ``oracle/annotations.parquet`` and the manifest of the delivery, whose pre-drawn boxes decide how long an answer
takes. The same delivery always returns the same labels, so a campaign can be repeated to the byte.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, RawAnnotation
from tasks.data.annotations import AnnotatedImage, read_annotated
from tasks.data.schemas import AnnotationTask, Box
from tasks.params.annotation import AnnotatorModelParams
from tasks.runtime.errors import UserError
from tasks.study.annotator_model import count_actions, draw_seconds

_SECONDS_DECIMALS = 1


class OracleProvider:
    """Returns the ground truth of every image at once, with the time of the annotator model."""

    name = "oracle"

    def __init__(self, oracle: Path, classes: Sequence[str], annotator: AnnotatorModelParams, seed: int) -> None:
        """Prepare the provider; nothing is read yet.

        Args:
            oracle: the ground truth, schemas.ANNOTATED.
            classes: class names in the order of their ids.
            annotator: what each action takes.
            seed: of the spread of the times, ``seed`` of params.yaml.
        """
        self._oracle = oracle
        self._classes = list(classes)
        self._annotator = annotator
        self._seed = seed

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

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Do nothing: no image is ever open."""
        return ()

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return the ground truth; an image without any comes back as skipped.

        Raises:
            UserError: the ground truth or the manifest of the delivery is missing or unreadable.
        """
        self.check()
        images = {image.image_id: image for image in read_annotated(self._oracle, self._classes)}
        predrawn_by_image = {
            task.image_id: [Box(category=box.category, xyxy_px=box.xyxy_px) for box in task.predictions]
            for task in read_manifest(delivery.folder / MANIFEST)
        }
        raw_annotations: list[RawAnnotation] = []
        for image_id in delivery.image_ids:
            image = images.get(image_id)
            raw_annotations.append(
                {
                    "image_id": image_id,
                    "status": "skipped" if image is None else "empty" if image.is_empty else "labeled",
                    "boxes": [] if image is None else _raw_boxes(image),
                    "annotator": self.name,
                    "finished_at": delivery.created_at,
                    "seconds_spent": self._seconds(image_id, image, predrawn_by_image.get(image_id, ())),
                }
            )
        return raw_annotations

    def _seconds(self, image_id: str, image: AnnotatedImage | None, predrawn: Sequence[Box]) -> float:
        if image is None:
            return 0.0
        actions = count_actions(predrawn, (*image.boxes, *image.crowd_regions), self._annotator.keep_iou)
        return round(draw_seconds(actions, self._annotator, seed=self._seed, image_id=image_id), _SECONDS_DECIMALS)


def _raw_boxes(image: AnnotatedImage) -> list[dict[str, Any]]:
    regions = [box.model_dump() | {"is_crowd": True} for box in image.crowd_regions]
    return [box.model_dump() for box in image.boxes] + regions
