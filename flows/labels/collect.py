"""Finished labels become the next label batch, and with it the next round.

All deliveries are asked, old ones too: people finish late, and change their minds. The batch file is written
last, at once: before it nothing has happened, after it the round exists. All else is done again by a second call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from flows import data_versions, vcs
from flows.labels.deliveries import all_deliveries, carry_over, discard_copies, mark, read_delivery
from flows.labels.intake import Intake
from flows.labels.leases import open_images
from flows.labels.providers.base import Delivery, LabelProvider, ProviderError
from tasks import files
from tasks.contracts import LabelBatch
from tasks.errors import UserError
from tasks.label_store import read_batch, read_labels
from tasks.params import Params
from tasks.paths import Workspace


@dataclass(frozen=True)
class Collected:
    """What a collection brought."""

    images: int
    """Images of the new label batch; 0: there is none yet."""
    refused: int
    """Answers refused tonight for the first time."""
    message: str
    troubles: tuple[ProviderError, ...] = ()
    """What the provider did not do; the rest of the collection went on."""


def collect(
    workspace: Workspace,
    provider: LabelProvider,
    params: Params,
    batch: int,
    deliveries: Sequence[Delivery],
    at: datetime,
) -> Collected:
    """Fetch what is finished; make it the label batch ``batch`` if it is enough.

    Args:
        workspace: a campaign whose newest round is published.
        provider: who labels.
        params: says how many labels are enough and how long a lease lasts.
        batch: number of the next label batch; its delivery is at least prepared.
        deliveries: those the provider has.
        at: the time of the collection, with time zone.

    Raises:
        UserError: labels came back and every one of them had to be refused.
        ProviderError: the provider is away.
    """
    if workspace.label_batch(batch).is_file():  # an attempt before this one failed right after writing it
        settle(workspace, batch)
        images = read_batch(workspace.label_batch(batch)).images
        return Collected(len(images), 0, f"Batch {batch}: {len(images)} images labeled.")
    intake = Intake(workspace, provider, params, at)
    intake.fetch(deliveries)
    images, _ = intake.news()  # answers that do not count come along with the next that do
    few = len(images) < params.nightly.min_labeled_images and params.nightly.on_few_labels == "skip"
    if not images or (few and intake.waits_for(deliveries)):
        return _nothing_yet(workspace, provider, deliveries, intake)
    intake.take_back(deliveries)
    written = _batch(batch, provider.name, at, intake)
    _append(workspace, written)
    counts = f"{len(written.images)} images labeled, {intake.newly_refused} refused, {intake.expired()} taken back"
    message = f"Batch {batch}: {counts}, {len(written.leased)} still with the annotators.{_wrong_clocks(written)}"
    return Collected(len(written.images), intake.newly_refused, message, tuple(intake.troubles))


def settle(workspace: Workspace, round_number: int) -> None:
    """Finish what a kill right after the new batch was written may have left; otherwise change nothing."""
    store = read_labels(workspace.labels)
    for delivery in all_deliveries(workspace):
        if delivery.batch > round_number:
            continue
        if delivery.state == "delivered" and not open_images(delivery, store):
            mark(delivery, "collected", delivery.receipt)
        discard_copies(delivery)
    vcs.commit(workspace, f"Collect labels of batch {round_number}", vcs.SOURCES)


def _batch(number: int, provider: str, at: datetime, intake: Intake) -> LabelBatch:
    images, others = intake.news()
    return LabelBatch(
        batch=number,
        provider=provider,
        collected_at=at.isoformat(timespec="seconds"),
        images=images,
        others=others,
        leased=intake.leased(),
    )


def _wrong_clocks(written: LabelBatch) -> str:
    answers = (*written.images, *written.others)
    people = sorted({label.annotator for label in answers if label.claimed_at is not None})
    return f" The clock of {', '.join(people)} is ahead: their answers count as finished tonight." if people else ""


def _append(workspace: Workspace, batch: LabelBatch) -> None:
    delivery = read_delivery(workspace, batch.batch)
    if delivery is None:
        folder = workspace.delivery(batch.batch)
        raise UserError(folder, "the delivery is missing, expected what the round before hands over", "Restore it.")
    carry_over(workspace, delivery)
    data_versions.add(workspace, workspace.frozen, workspace.previous)
    files.write_json(workspace.label_batch(batch.batch), batch.model_dump(mode="json"))
    settle(workspace, batch.batch)


def _nothing_yet(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[Delivery], intake: Intake
) -> Collected:
    """Leave everything as it is, but for what was refused."""
    if intake.newly_set_aside:
        vcs.commit(workspace, f"Set aside {len(intake.newly_set_aside)} answers", (workspace.quarantine.name,))
    images, _ = intake.news()
    if intake.newly_refused and not images and not intake.troubles:
        raise _nothing_usable(workspace, intake)
    few = f"{len(images)} images are newly labeled, fewer than nightly.min_labeled_images"
    message = few if images else _progress(workspace, provider, deliveries, intake)
    return Collected(0, intake.newly_refused, f"{message}, nothing to do tonight.", tuple(intake.troubles))


def _progress(workspace: Workspace, provider: LabelProvider, deliveries: Sequence[Delivery], intake: Intake) -> str:
    """What is out, in the provider's own count."""
    store = read_labels(workspace.labels)
    words = []
    for delivery in deliveries:
        if not open_images(delivery, store):
            continue
        try:
            progress = provider.status(delivery)
        except ProviderError as error:
            intake.troubles.append(error)
            continue
        words.append(f"batch {delivery.batch}: {progress.finished} finished, {progress.open} open")
    return f"No new labels ({'; '.join(words) or 'nothing is with the annotators'})"


def _nothing_usable(workspace: Workspace, intake: Intake) -> UserError:
    first = intake.refusals[0].quarantined
    problem = f"usable labels are 0 of {len(intake.refusals)}, expected at least 1"
    return UserError(workspace.quarantine, problem, f"The first one refused is {first.where}: {first.reason}.")
