"""Finished labels become the next label batch, and with it the next round.

All deliveries are asked, old ones too: people finish late, and change their minds. The batch file is written
last, at once: before it nothing has happened, after it the round exists. All else is done again by a second call.

Answers to all deliveries, put through the door together, and what is taken back from the annotators.

Nothing here is remembered: a collection that was cut off asks again, and comes to the same.
"""

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from flows.annotation.batches import (
    all_annotation_batches,
    archive_round_outputs,
    read_annotation_batch,
    remove_archived_files,
    set_state,
)
from flows.annotation.leases import lease_expires_at, open_images
from flows.annotation.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.annotation.quarantine import add_to_quarantine, released_annotations
from flows.annotation.validation.context import read_validation_context
from flows.annotation.validation.rejection import Rejection
from flows.annotation.validation.resolve_conflicts import resolve_conflicts
from flows.annotation.validation.validate_batch import validate_batch
from flows.workspace import dvc, git
from tasks.data.label_store import read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import LabelBatch, LabeledImage
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.storage import files

_AnnotationKey = tuple[str, int]
"""An image, and the batch it was offered in."""


class LabelCollector:
    """One collection at work."""

    def __init__(self, workspace: Workspace, provider: LabelProvider, params: Params, collected_at: datetime) -> None:
        """Read what label batches and the quarantine hold; ``at`` is the time of the collection, with time zone."""
        self._workspace, self._provider, self._params, self._collected_at = workspace, provider, params, collected_at
        self._store = read_labels(workspace.labels)
        self._released = released_annotations(workspace, self._store.all_annotations)
        self._labels: dict[int, tuple[LabeledImage, ...]] = {}
        self._withdrawn: set[_AnnotationKey] = set()
        self.rejections: list[Rejection] = []
        """Of all deliveries, those of earlier nights too."""
        self.new_rejections: list[Rejection] = []
        """What the quarantine did not hold before tonight."""
        self.provider_errors: list[ProviderError] = []
        """What the provider refused to do for single deliveries."""

    def fetch(self, deliveries: Iterable[AnnotationBatch]) -> None:
        """Ask for the answers to each delivery; one that the provider has lost does not hold up the others.

        Raises:
            ProviderError: the provider is away, for all of them.
        """
        for delivery in deliveries:
            try:
                self._fetch_one(delivery)
            except ProviderError as error:
                if error.transient:
                    raise
                self.provider_errors.append(error)

    @property
    def num_new_rejections(self) -> int:
        """Answers that tonight are kept out for the first time; what is only noted of one that went in is none."""
        return sum(rejection.kind != "note" for rejection in self.new_rejections)

    def new_annotations(self) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
        """New answers so far: those that count, one an image, and the others; by image id."""
        return resolve_conflicts(
            (label for labels in self._labels.values() for label in labels), self._store.all_annotations
        )

    def has_active_leases(self, deliveries: Iterable[AnnotationBatch]) -> bool:
        """Whether anything is with the annotators whose lease goes on."""
        annotated = self._annotated_keys()
        active = (delivery for delivery in deliveries if not self._is_lease_expired(delivery))
        return any(self._unannotated(delivery, annotated) for delivery in active)

    def withdraw(self, deliveries: Iterable[AnnotationBatch]) -> None:
        """Withdraw what people had long enough, or what an answer to another delivery has settled.

        What somebody finished at the last moment is fetched. What the provider does not give back stays leased.
        """
        annotated = self._annotated_keys()
        for delivery in deliveries:
            image_ids = self._to_withdraw(delivery, annotated)
            if not image_ids:
                continue
            try:
                self._provider.withdraw(delivery, image_ids)
                self._fetch_one(delivery)
            except ProviderError as error:
                self.provider_errors.append(error)
            else:
                annotated = self._annotated_keys()
                self._withdrawn |= {(image_id, delivery.batch) for image_id in image_ids}

    def leased_images(self) -> dict[str, int]:
        """What stays with the annotators: image id to the batch it was offered in, by image id."""
        closed = self._annotated_keys() | self._withdrawn
        pairs = [
            (image_id, delivery.batch)
            for delivery in all_annotation_batches(self._workspace)
            for image_id in open_images(delivery, self._store)
        ]
        return dict(sorted(pair for pair in pairs if pair not in closed))

    def num_expired(self) -> int:
        """How many images were taken back although nobody answered."""
        annotated = {image_id for image_id, _ in self._annotated_keys()}
        return sum(image_id not in annotated for image_id, _ in self._withdrawn)

    def _fetch_one(self, delivery: AnnotationBatch) -> None:
        raw_annotations = [*self._provider.collect(delivery), *self._released.get(delivery.batch, ())]
        context = read_validation_context(self._workspace, self._params, delivery, self._collected_at)
        validated = validate_batch(raw_annotations, context, self._store.all_annotations)
        self.new_rejections += add_to_quarantine(self._workspace, validated.rejections)
        self.rejections += validated.rejections
        self._labels[delivery.batch] = (*validated.primary, *validated.secondary)

    def _annotated_keys(self) -> set[_AnnotationKey]:
        earlier = (label for labels in self._store.all_annotations.values() for label in labels)
        now = (label for labels in self._labels.values() for label in labels)
        return {(label.image_id, label.offered_batch) for labels in (earlier, now) for label in labels}

    def _unannotated(self, delivery: AnnotationBatch, annotated: Set[_AnnotationKey]) -> Sequence[str]:
        return [i for i in open_images(delivery, self._store) if (i, delivery.batch) not in annotated]

    def _to_withdraw(self, delivery: AnnotationBatch, annotated: Set[_AnnotationKey]) -> Collection[str]:
        unannotated = self._unannotated(delivery, annotated)
        if self._is_lease_expired(delivery):
            return unannotated
        annotated_ids = {image_id for image_id, _ in annotated} if unannotated else ()
        return [image_id for image_id in unannotated if image_id in annotated_ids]

    def _is_lease_expired(self, delivery: AnnotationBatch) -> bool:
        return self._collected_at >= lease_expires_at(delivery, self._params.provider.lease_days)


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
    git.commit(workspace, f"Collect labels of batch {round_number}", git.SOURCE_PATHS)


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
    dvc.add(workspace, workspace.detections_at_selection, workspace.warm_start)
    files.write_json(workspace.label_batch(batch.batch), batch.model_dump(mode="json"))
    finalize_collection(workspace, batch.batch)


def _finish_without_batch(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[AnnotationBatch], collector: LabelCollector
) -> CollectionResult:
    """Leave everything as it is, but for what was refused."""
    if collector.new_rejections:
        git.commit(workspace, f"Set aside {len(collector.new_rejections)} answers", (workspace.quarantine.name,))
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
