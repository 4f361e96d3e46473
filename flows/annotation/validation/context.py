"""What the answers to one delivery are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.quarantine import approved_annotations
from flows.workspace.ledger import read_ledger
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.params import Params
from tasks.params.annotation import LabelValidationParams


@dataclass(frozen=True)
class ValidationContext:
    """One delivery, and the rules."""

    batch: int
    tasks: Mapping[str, AnnotationTask]
    """By image id."""
    classes: Sequence[str]
    limits: LabelValidationParams
    is_teacher_trusted: bool
    """Whether the teacher that drew the boxes was good enough for an answer to be held against its claims."""
    collected_at: datetime
    """With time zone."""
    approved: frozenset[str] = frozenset()
    """Digests of suspicious answers that a person has confirmed (``flows.annotation.validation.rejection.annotation_digest``)."""

    @cached_property
    def max_preannotated(self) -> int:
        """Boxes pre-drawn on the image that has most."""
        return max((len(task.predictions) for task in self.tasks.values()), default=0)


def read_validation_context(
    workspace: Workspace, params: Params, delivery: AnnotationBatch, collected_at: datetime
) -> ValidationContext:
    """Read what was offered.

    Args:
        workspace: of the campaign.
        params: hold the rules.
        delivery: what was offered.
        at: the time of the collection, with time zone.

    Raises:
        UserError: the manifest of the delivery, or an entry of the quarantine, is missing or broken.
    """
    tasks = read_manifest(delivery.folder / MANIFEST)
    return ValidationContext(
        batch=delivery.batch,
        tasks={task.image_id: task for task in tasks},
        classes=params.classes,
        limits=params.label_validation,
        is_teacher_trusted=_teacher_ap50(workspace, delivery.batch - 1) >= params.label_validation.min_teacher_ap50,
        collected_at=collected_at,
        approved=approved_annotations(workspace, delivery.batch),
    )


def _teacher_ap50(workspace: Workspace, round_number: int) -> float:
    """On the validation set, in percent; 0 where nothing was measured."""
    if not workspace.ledger(round_number).is_file():
        return 0.0
    ap50 = read_ledger(workspace, round_number)["metrics"]["teacher"]["AP50"]
    return 0.0 if ap50 is None else float(ap50)
