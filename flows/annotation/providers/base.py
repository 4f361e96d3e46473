"""The protocol of label providers, and the form in which they return annotations.

Nothing a provider returns is trusted: ``flows.annotation.validation`` checks every annotation.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from flows.workspace.owner import ADOPT_HINT, Owner, read_owner
from tasks.data.formats.base import ParsedBox, ParsedImage
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.runtime.errors import UserError

RawAnnotation = Mapping[str, Any]
"""One finished annotation as the provider returns it, unchecked. Two annotators give two annotations of one image.

Required keys: ``image_id``, ``status``, ``boxes`` (a list of ``category``, ``xyxy_px`` and optionally ``shape``,
``rotation_deg`` and ``is_crowd``), ``annotator``, ``finished_at`` (ISO 8601 with time zone) and ``seconds_spent``.
Optional keys: ``answer_id`` (the provider's own id, which never changes), ``url`` (where a person can look at it),
``image_sha256`` and ``image_size_px`` (digest of the bytes, and width and height, of the image that was labeled).
An entry that cannot be read as an annotation has a ``problem``, the reason as text."""

_DECIMALS = 3
"""Corners are rounded to a thousandth of a pixel, which removes the noise of converting fractions and percentages."""


def to_raw_annotation(image: ParsedImage, **fields: Any) -> dict[str, Any]:
    """Convert what a reader of ``tasks.data.formats`` yields for one image.

    Args:
        image: boxes in pixels.
        fields: keys that the provider knows better than the document, such as ``image_id``.
    """
    size = None if image.width_px is None or image.height_px is None else [image.width_px, image.height_px]
    raw: dict[str, Any] = {
        "image_id": image.image_id,
        "status": image.status or ("labeled" if image.boxes else "empty"),
        "boxes": [_raw_box(box) for box in image.boxes],
        "annotator": image.annotator,
        "finished_at": image.finished_at,
        "seconds_spent": image.seconds_spent,
        "image_sha256": image.sha256,
        "image_size_px": size,
        **fields,
    }
    problem = image.first_problem
    return raw if problem is None else {**raw, "problem": problem}


def _raw_box(box: ParsedBox) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "category": box.category,
        "xyxy_px": [round(corner, _DECIMALS) for corner in box.xyxy],
        "shape": box.kind,
    }
    if box.is_crowd:  # its bounding box is enough, since no object is learned from it
        raw |= {"shape": "box", "is_crowd": True}
    return raw


class ProviderError(UserError):
    """The label provider does not answer or refuses; the run continues with everything that needs no labels."""

    exit_code = 1

    def __init__(self, where: object, problem: str, fix: str = "", *, transient: bool = False) -> None:
        """Build the message; ``transient``: the same call may work in a while."""
        super().__init__(where, problem, fix)
        self.transient = transient

    @classmethod
    def of(cls, error: UserError) -> "ProviderError":
        """Convert an error about one delivery, such as a broken manifest, so that it is reported with the others."""
        return error if isinstance(error, cls) else cls(error.where, error.problem, error.fix)


@dataclass(frozen=True)
class AnnotationBatch:
    """One batch of images that was, or is about to be, delivered to the annotators."""

    batch: int
    key: str
    """Idempotency key: the same for the same batch of the same campaign, whoever delivers it and how often."""
    folder: Path
    """Holds ``manifest.jsonl``: one ``AnnotationTask`` per line."""
    image_ids: tuple[str, ...]
    created_at: str
    """ISO 8601 with time zone."""
    state: Literal["prepared", "delivered", "collected"]
    """``prepared`` until the provider has it; ``collected`` when none of its images is open any more. Late and changed
    annotations of a collected delivery are still accepted."""
    receipt: str | None
    """The provider's name for the batch; None before it was delivered."""
    delivered_at: str | None = None
    """ISO 8601 with time zone: when the provider received it and its lease began."""
    refreshed_round: int | None = None
    """Round whose teacher has ranked and pre-drawn its open images anew; None: that which offered it."""
    is_held: bool = False
    """Whether it offers no image because ``nightly.stop`` is ``hold``; it is made anew when that changes."""
    checked_ids: tuple[str, ...] = ()
    """Those of its images that are labeled: to check the label (docs/method.md#relabel), or as honeypots
    (docs/method.md#honeypots)."""

    @property
    def new_ids(self) -> tuple[str, ...]:
        """Those of its images that had no label when they were offered."""
        checked = set(self.checked_ids)
        return tuple(image_id for image_id in self.image_ids if image_id not in checked)


@dataclass(frozen=True)
class LabelingProgress:
    """Progress of one delivery, in images."""

    finished: int
    open: int


class LabelProvider(Protocol):
    """A label tool or service. Every method may be called again with the same delivery, after a kill at any moment.

    All methods raise ProviderError when the provider does not answer or refuses.
    """

    @property
    def name(self) -> str:
        """Name of the provider, recorded in the label batch."""

    def check(self) -> None:
        """Refuse early, before the stages of a run, when nothing could be delivered.

        Raises:
            UserError: what is missing, and how to set it up.
        """

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Offer the images of the manifest; return the provider's name for the batch."""

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count the finished and the open images."""

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Return every annotation finished so far, in any order, including those collected before."""

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Take back those of the images that nobody has finished; finished annotations stay collectable."""

    def refresh(self, delivery: AnnotationBatch, tasks: Sequence[AnnotationTask]) -> Collection[str]:
        """Give open images their new rank and pre-drawn boxes, where nobody has begun; begun ones stay as they are.

        Args:
            delivery: one that the provider has.
            tasks: its open images, by rank, as in the manifest. One that the provider no longer has, since
                the response to a withdrawal was lost, is left out.

        Returns:
            Images whose annotators will find, or have found, the boxes of ``tasks``: a repeated call returns those of
            the earlier one too. None of them where nobody can know.
        """


@runtime_checkable
class OwnedProvider(Protocol):
    """A provider that keeps the owner id of the one folder that goes on with a campaign, and refuses others."""

    def take_over(self) -> str | None:
        """Enter this folder as owner; return the former one, for messages. None: it was this one, or nobody's.

        Raises:
            ProviderError: the provider does not answer or refuses.
        """


def require_provider_owner(where: object, owner_id: str | None, place: str, own: Owner | None) -> None:
    """Refuse to work with what another folder of the same campaign has at the provider.

    Args:
        where: names it in the error.
        owner_id: of the folder it belongs to; None where it names none.
        place: of that folder, for the message.
        own: the owner in this folder; None where it has no record.

    Raises:
        ProviderError: it belongs to another folder.
    """
    if own is not None and owner_id not in (None, own.owner_id):
        raise ProviderError(where, f"it belongs to {place}, expected {own.place}", ADOPT_HINT)


def own_folder(root: Path) -> Owner | None:
    """Return the owner in the record of a campaign's folder; None where it has none yet."""
    return read_owner(Workspace(root))


def sample_for_double_annotation(image_ids: Sequence[str], double_annotation_frac: float, key: str) -> frozenset[str]:
    """Sample a share of the images, at least one where the share is above 0; a repeated call samples the same.

    Args:
        image_ids: images of the delivery that have no label: a check is a second look already.
        double_annotation_frac: ``provider.double_annotation_frac``, range [0, 1].
        key: idempotency key of the delivery, the seed of the sample.
    """
    count = round(double_annotation_frac * len(image_ids)) or int(double_annotation_frac > 0)

    def sort_key(image_id: str) -> str:
        return hashlib.sha256(f"{key}/{image_id}".encode()).hexdigest()

    return frozenset(sorted(image_ids, key=sort_key)[:count])
