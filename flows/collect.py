"""Finished labels become the next label batch, and with it the next round.

The batch file is written last, at once: before it nothing has happened, after it the round exists. All else
is copied again by a second call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flows import data_versions, vcs
from flows.deliveries import MANIFEST, carry_over, discard_copies, mark, read_delivery, read_manifest
from flows.door import Admitted, Refusal, admit, write_refusals
from flows.providers.base import Delivery, LabelProvider
from tasks import files
from tasks.contracts import LabelBatch
from tasks.errors import UserError
from tasks.label_store import read_batch
from tasks.params import Params
from tasks.paths import Workspace


@dataclass(frozen=True)
class Collected:
    """What a collection brought."""

    images: int
    """Images of the new label batch; 0: there is none yet."""
    refused: int
    message: str


def collect(workspace: Workspace, provider: LabelProvider, params: Params, delivery: Delivery) -> Collected:
    """Fetch what is finished of one delivery; make it a label batch if it is enough.

    Raises:
        UserError: labels came back and every one of them had to be refused.
    """
    progress = provider.status(delivery)
    offered = progress.finished + progress.open
    if not progress.finished:
        return Collected(
            0, 0, f"Batch {delivery.batch}: none of {offered} images is labeled yet, nothing to do tonight."
        )
    admitted = _fetch(workspace, provider, params, delivery)
    write_refusals(workspace, delivery.batch, admitted.refusals)
    refused = len(admitted.refusals)
    if len(admitted.images) < params.nightly.min_labeled_images and params.nightly.on_few_labels == "skip":
        few = f"{len(admitted.images)} of {offered} images are labeled, fewer than nightly.min_labeled_images"
        return Collected(0, refused, f"Batch {delivery.batch}: {few}, nothing to do tonight.")
    if not admitted.images:
        raise _nothing_usable(workspace, admitted.refusals)
    provider.withdraw(delivery, delivery.image_ids)  # from here on nothing more can come in
    admitted = _fetch(workspace, provider, params, delivery)
    write_refusals(workspace, delivery.batch, admitted.refusals)
    _append(workspace, provider.name, delivery, admitted)
    counts = f"{len(admitted.images)} of {offered} images labeled, {len(admitted.refusals)} refused"
    return Collected(len(admitted.images), len(admitted.refusals), f"Batch {delivery.batch}: {counts}.")


def settle(workspace: Workspace, round_number: int) -> None:
    """Finish what a kill right after the new batch was written may have left; otherwise change nothing."""
    delivery = read_delivery(workspace, round_number)
    if delivery is not None:
        if delivery.state != "collected":
            mark(delivery, "collected", delivery.receipt)
        discard_copies(delivery)
    vcs.commit(workspace, f"Collect labels of batch {round_number}", vcs.SOURCES)


def _fetch(workspace: Workspace, provider: LabelProvider, params: Params, delivery: Delivery) -> Admitted:
    return admit(
        provider.collect(delivery),
        batch=delivery.batch,
        offered=read_manifest(delivery.folder / MANIFEST),
        classes=params.classes,
        known=_labeled_before(workspace, delivery.batch),
    )


def _labeled_before(workspace: Workspace, batch: int) -> set[str]:
    """Images some earlier batch has an answer for; a skipped one may be asked for again."""
    batches = (read_batch(workspace.label_batch(earlier)) for earlier in range(batch))
    return {image.image_id for earlier in batches for image in earlier.images if image.status != "skipped"}


def _append(workspace: Workspace, provider: str, delivery: Delivery, admitted: Admitted) -> None:
    carry_over(workspace, delivery)
    data_versions.add(workspace, workspace.frozen, workspace.previous)
    batch = LabelBatch(
        batch=delivery.batch,
        provider=provider,
        collected_at=datetime.now(UTC).isoformat(timespec="seconds"),
        images=admitted.images,
    )
    files.write_json(workspace.label_batch(delivery.batch), batch.model_dump(mode="json"))
    settle(workspace, delivery.batch)


def _nothing_usable(workspace: Workspace, refusals: Sequence[Refusal]) -> UserError:
    first = refusals[0].quarantined if refusals else None
    problem = f"usable labels are 0 of {len(refusals)}, expected at least 1"
    fix = f"The first one refused is {first.where}: {first.reason}." if first else ""
    return UserError(workspace.quarantine, problem, fix)
