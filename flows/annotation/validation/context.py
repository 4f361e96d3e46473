"""Hold and read what the annotations of one delivery are validated against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import AnnotationBatch
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params import Params
from tasks.params.annotation import LabelValidationParams
from tasks.storage import files


@dataclass(frozen=True)
class ValidationContext:
    """The tasks of one delivery, and the limits of ``label_validation``."""

    batch: int
    tasks: Mapping[str, AnnotationTask]
    """By image id."""
    classes: Sequence[str]
    limits: LabelValidationParams
    is_teacher_trusted: bool
    """Whether the teacher that made the pre-annotations was accurate enough to question an annotation."""
    collected_at: datetime
    """With time zone."""
    approved: frozenset[str] = frozenset()
    """Digests of implausible annotations that a person has approved (``rejection.annotation_digest``)."""

    @cached_property
    def max_preannotated(self) -> int:
        """Largest number of pre-annotated boxes on any image of the delivery."""
        return max((len(task.predictions) for task in self.tasks.values()), default=0)


def read_validation_context(
    workspace: Workspace,
    params: Params,
    delivery: AnnotationBatch,
    collected_at: datetime,
    approved: frozenset[str],
) -> ValidationContext:
    """Read the manifest of a delivery and the accuracy of the teacher behind it.

    Args:
        workspace: of the campaign.
        params: classes and limits.
        delivery: the delivery to validate annotations of.
        collected_at: time of the collection, with time zone.
        approved: digests of implausible annotations that a person has approved.

    Raises:
        UserError: the manifest of the delivery, or the ledger of its round, is missing or broken.
    """
    tasks = read_manifest(delivery.folder / MANIFEST)
    return ValidationContext(
        batch=delivery.batch,
        tasks={task.image_id: task for task in tasks},
        classes=params.classes,
        limits=params.label_validation,
        is_teacher_trusted=_teacher_ap50(workspace, delivery.batch - 1) >= params.label_validation.min_teacher_ap50,
        collected_at=collected_at,
        approved=approved,
    )


def _teacher_ap50(workspace: Workspace, round_number: int) -> float:
    """AP50 of the round's teacher on the validation set, in percent; 0 where none was measured."""
    path = workspace.ledger(round_number)
    ap50 = files.read_json(path)["metrics"]["teacher"]["AP50"] if path.is_file() else None
    return 0.0 if ap50 is None else float(ap50)
