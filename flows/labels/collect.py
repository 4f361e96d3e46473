"""Finished labels become the next label batch, and with it the next round.

All deliveries are asked, old ones too: people finish late, and change their minds. The batch file is written
last, at once: before it nothing has happened, after it the round exists. All else is done again by a second call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from flows import data_versions, vcs
from flows.labels.deliveries import (
    all_annotation_batches,
    archive_round_outputs,
    read_annotation_batch,
    remove_archived_files,
    set_state,
)
from flows.labels.intake import LabelCollector
from flows.labels.leases import open_images
from flows.labels.providers.base import AnnotationBatch, LabelProvider, ProviderError
from tasks import files
from tasks.contracts import LabelBatch
from tasks.errors import UserError
from tasks.label_store import read_batch, read_labels
from tasks.params import Params
from tasks.paths import Workspace


@dataclass(frozen=True)
class CollectionResult:
    """What a collection brought."""

    num_images: int
    """Images of the new label batch; 0: there is none yet."""
    num_rejected: int
    """Answers refused tonight for the first time."""
    message: str
    provider_errors: tuple[ProviderError, ...] = ()
    """What the provider did not do; the rest of the collection went on."""


def collect(
    workspace: Workspace,
    provider: LabelProvider,
    params: Params,
    batch: int,
    deliveries: Sequence[AnnotationBatch],
    collected_at: datetime,
) -> CollectionResult:
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
        finalize_collection(workspace, batch)
        images = read_batch(workspace.label_batch(batch)).images
        return CollectionResult(len(images), 0, f"Batch {batch}: {len(images)} images labeled.")
    collector = LabelCollector(workspace, provider, params, collected_at)
    collector.fetch(deliveries)
    images, _ = collector.new_annotations()  # answers that do not count come along with the next that do
    has_too_few = len(images) < params.nightly.min_new_labels and params.nightly.on_few_labels == "skip"
    if not images or (has_too_few and collector.has_active_leases(deliveries)):
        return _finish_without_batch(workspace, provider, deliveries, collector)
    collector.withdraw(deliveries)
    label_batch = _label_batch(batch, provider.name, collected_at, collector)
    _write_label_batch(workspace, label_batch)
    counts = f"{len(label_batch.images)} images labeled, {collector.num_new_rejections} refused, {collector.num_expired()} taken back"
    message = f"Batch {batch}: {counts}, {len(label_batch.leased)} still with the annotators.{_clock_skew_warning(label_batch)}"
    return CollectionResult(
        len(label_batch.images), collector.num_new_rejections, message, tuple(collector.provider_errors)
    )


def finalize_collection(workspace: Workspace, round_number: int) -> None:
    """Finish what a kill right after the new batch was written may have left; otherwise change nothing."""
    store = read_labels(workspace.labels)
    for delivery in all_annotation_batches(workspace):
        if delivery.batch > round_number:
            continue
        if delivery.state == "delivered" and not open_images(delivery, store):
            set_state(delivery, "collected", delivery.receipt)
        remove_archived_files(delivery)
    vcs.commit(workspace, f"Collect labels of batch {round_number}", vcs.SOURCE_PATHS)


def _label_batch(number: int, provider: str, collected_at: datetime, collector: LabelCollector) -> LabelBatch:
    images, secondary = collector.new_annotations()
    return LabelBatch(
        batch=number,
        provider=provider,
        collected_at=collected_at.isoformat(timespec="seconds"),
        images=images,
        other_annotations=secondary,
        leased=collector.leased_images(),
    )


def _clock_skew_warning(label_batch: LabelBatch) -> str:
    annotations = (*label_batch.images, *label_batch.other_annotations)
    annotators = sorted({label.annotator for label in annotations if label.reported_finished_at is not None})
    return (
        f" The clock of {', '.join(annotators)} is ahead: their answers count as finished tonight."
        if annotators
        else ""
    )


def _write_label_batch(workspace: Workspace, batch: LabelBatch) -> None:
    delivery = read_annotation_batch(workspace, batch.batch)
    if delivery is None:
        folder = workspace.delivery(batch.batch)
        raise UserError(folder, "the delivery is missing, expected what the round before hands over", "Restore it.")
    archive_round_outputs(workspace, delivery)
    data_versions.add(workspace, workspace.detections_at_selection, workspace.warm_start)
    files.write_json(workspace.label_batch(batch.batch), batch.model_dump(mode="json"))
    finalize_collection(workspace, batch.batch)


def _finish_without_batch(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[AnnotationBatch], collector: LabelCollector
) -> CollectionResult:
    """Leave everything as it is, but for what was refused."""
    if collector.new_rejections:
        vcs.commit(workspace, f"Set aside {len(collector.new_rejections)} answers", (workspace.quarantine.name,))
    images, _ = collector.new_annotations()
    if collector.num_new_rejections and not images and not collector.provider_errors:
        raise _all_rejected_error(workspace, collector)
    too_few = f"{len(images)} images are newly labeled, fewer than nightly.min_new_labels"
    message = too_few if images else _no_labels_message(workspace, provider, deliveries, collector)
    return CollectionResult(
        0, collector.num_new_rejections, f"{message}, nothing to do tonight.", tuple(collector.provider_errors)
    )


def _no_labels_message(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[AnnotationBatch], collector: LabelCollector
) -> str:
    """What is out, in the provider's own count."""
    store = read_labels(workspace.labels)
    counts = []
    for delivery in deliveries:
        if not open_images(delivery, store):
            continue
        try:
            progress = provider.status(delivery)
        except ProviderError as error:
            collector.provider_errors.append(error)
            continue
        counts.append(f"batch {delivery.batch}: {progress.finished} finished, {progress.open} open")
    return f"No new labels ({'; '.join(counts) or 'nothing is with the annotators'})"


def _all_rejected_error(workspace: Workspace, collector: LabelCollector) -> UserError:
    first = collector.rejections[0].quarantined
    problem = f"usable labels are 0 of {len(collector.rejections)}, expected at least 1"
    return UserError(workspace.quarantine, problem, f"The first one refused is {first.item}: {first.reason}.")
