"""What the nightly round asks of whoever labels. Nothing a provider returns is trusted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tasks.runtime.errors import UserError

RawAnnotation = Mapping[str, Any]
"""One finished answer as the provider tells it: image_id, status, boxes [{category, xyxy_px, rotation_deg}], annotator,
finished_at, seconds_spent, answer_id (what the provider calls it, for ever), url (where a person can look at it) and
image_sha256 (of the bytes that were labeled; None where the tool cannot say). ``rotation_deg``, ``answer_id``, ``url``
and ``image_sha256`` may be absent. Two annotators give two answers to one image. Something that came in and
cannot be made an answer is told as one with ``problem``, the reason in words. Any of it may be wrong;
``flows.annotation.validation`` decides, and sets aside."""


class ProviderError(UserError):
    """The label provider does not do its part; the night goes on with what needs no labels."""

    exit_code = 1

    def __init__(self, where: object, problem: str, fix: str = "", *, transient: bool = False) -> None:
        """``transient``: the same call may work in a while."""
        super().__init__(where, problem, fix)
        self.transient = transient


@dataclass(frozen=True)
class AnnotationBatch:
    """One batch that was, or is about to be, offered."""

    batch: int
    key: str
    """Idempotency key: the same batch of the same campaign, whoever asks and how often."""
    folder: Path
    """Holds ``manifest.jsonl``: one contracts.AnnotationTask a line."""
    image_ids: tuple[str, ...]
    created_at: str
    """ISO 8601 with time zone."""
    state: Literal["prepared", "delivered", "collected"]
    """``prepared`` until the provider has it; ``collected`` when none of its images is open any more. Late and changed
    answers to a collected delivery are still taken."""
    receipt: str | None
    """What the provider called the batch; None before it has it."""
    delivered_at: str | None = None
    """ISO 8601 with time zone: when the provider had it, and its lease began."""


@dataclass(frozen=True)
class LabelingProgress:
    """How far a delivery is, in images."""

    finished: int
    open: int


class LabelProvider(Protocol):
    """Every method may be called again with the same delivery, after a kill at any moment.

    All of them raise ProviderError when the provider is away or refuses.
    """

    @property
    def name(self) -> str:
        """Goes into the label batch."""

    def check(self) -> None:
        """Refuse early, before a night's work, when nothing could be delivered.

        Raises:
            UserError: what is missing, and how to set it up.
        """

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Offer the manifest's images; return what the provider calls the batch."""

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count what is finished and what is not."""

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Every answer finished so far, in any order, those that were collected before too."""

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Take back those of the images that nobody has finished; what is finished stays collectable."""
