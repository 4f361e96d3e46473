"""What the answers to one delivery are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from flows.labels.deliveries import MANIFEST, read_manifest
from flows.labels.providers.base import Delivery
from flows.labels.quarantine import confirmed_answers
from flows.records.ledger import read_ledger
from tasks.contracts import HandoffTask
from tasks.params import Params
from tasks.paths import Workspace
from tasks.people_sections import DoorParams


@dataclass(frozen=True)
class Offer:
    """One delivery, and the rules."""

    batch: int
    tasks: Mapping[str, HandoffTask]
    """By image id."""
    classes: Sequence[str]
    rules: DoorParams
    teacher_trusted: bool
    """Whether the teacher that drew the boxes was good enough for an answer to be held against its claims."""
    collected_at: datetime
    """With time zone."""
    confirmed: frozenset[str] = frozenset()
    """Digests of suspicious answers that a person has confirmed (``flows.labels.door.refusal.answer_digest``)."""

    @cached_property
    def most_predrawn(self) -> int:
        """Boxes pre-drawn on the image that has most."""
        return max((len(task.predictions) for task in self.tasks.values()), default=0)


def offer_of(workspace: Workspace, params: Params, delivery: Delivery, at: datetime) -> Offer:
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
    return Offer(
        batch=delivery.batch,
        tasks={task.image_id: task for task in tasks},
        classes=params.classes,
        rules=params.door,
        teacher_trusted=_teacher_ap50(workspace, delivery.batch - 1) >= params.door.trusted_ap50,
        collected_at=at,
        confirmed=confirmed_answers(workspace, delivery.batch),
    )


def _teacher_ap50(workspace: Workspace, round_number: int) -> float:
    """On the validation set, in percent; 0 where nothing was measured."""
    if not workspace.ledger(round_number).is_file():
        return 0.0
    measured = read_ledger(workspace, round_number)["figures"]["teacher"]["AP50"]
    return 0.0 if measured is None else float(measured)
