"""What the nightly round asks of whoever labels. Nothing a provider returns is trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Returned = Mapping[str, Any]
"""One finished image as the provider tells it: image_id, status, boxes [{category, xyxy_px}], annotator,
finished_at, seconds_spent. Any of it may be wrong; ``flows.door`` decides."""


@dataclass(frozen=True)
class Delivery:
    """One batch that was, or is about to be, offered."""

    batch: int
    key: str
    """Idempotency key: the same batch of the same campaign, whoever asks and how often."""
    folder: Path
    """Holds ``manifest.jsonl``: one contracts.HandoffTask a line."""
    image_ids: tuple[str, ...]
    created_at: str
    """ISO 8601 with time zone."""
    state: Literal["prepared", "delivered", "collected"]
    receipt: str | None
    """What the provider called the batch; None before it has it."""


@dataclass(frozen=True)
class LabelingProgress:
    """How far a delivery is, in images."""

    finished: int
    open: int


class LabelProvider(Protocol):
    """Every method may be called again with the same delivery, after a kill at any moment."""

    @property
    def name(self) -> str:
        """Goes into the label batch."""

    def check(self) -> None:
        """Refuse early, before a night's work, when nothing could be delivered.

        Raises:
            UserError: what is missing, and how to set it up.
        """

    def deliver(self, delivery: Delivery) -> str:
        """Offer the manifest's images; return what the provider calls the batch."""

    def status(self, delivery: Delivery) -> LabelingProgress:
        """Count what is finished and what is not."""

    def collect(self, delivery: Delivery) -> Sequence[Returned]:
        """Everything finished so far, in any order."""

    def withdraw(self, delivery: Delivery) -> None:
        """Take back what nobody has finished; what is finished stays collectable."""
