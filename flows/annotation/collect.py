"""Collect finished annotations of all deliveries; enough new labels become the next label batch, and so the next round.

Labels of all deliveries are collected, of earlier ones too: annotators finish late and change annotations. The batch
file is written last and at once: before it nothing has happened, after it the round exists. No other state is kept, so
a collection that was interrupted is repeated and gives the same result.
"""

import logging
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from flows.annotation.annotation_rules import Rejection, read_validation_context
from flows.annotation.batches import (
    all_annotation_batches,
    archive_round_outputs,
    lease_expires_at,
    open_images,
    read_annotation_batch,
    remove_archived_files,
    set_state,
)
from flows.annotation.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.annotation.quarantine import add_to_quarantine, approved_annotations, released_annotations
from flows.annotation.validation import annotator_key, resolve_conflicts, validate_batch
from flows.workspace import dvc, git
from tasks.data.label_store import read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import LabelBatch, LabeledImage
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count, count_are
from tasks.storage import files

_log = logging.getLogger(__name__)

_AnnotationKey = tuple[str, int]
"""Image id, and number of the batch in which the image was offered."""


@dataclass(frozen=True)
class CollectionResult:
    """Result of a collection."""

    num_images: int
    """Images of the new label batch; 0: no batch was written."""
    num_rejected: int
    """Annotations rejected for the first time."""
    message: str
    provider_errors: tuple[ProviderError, ...] = ()
    """Errors about single deliveries; the others were collected."""


def collect(
    workspace: Workspace,
    provider: LabelProvider,
    params: Params,
    batch: int,
    deliveries: Sequence[AnnotationBatch],
    collected_at: datetime,
) -> CollectionResult:
    """Collect finished annotations; write label batch ``batch`` if there are enough new labels.

    Args:
        workspace: a campaign whose newest round is published.
        provider: the label provider.
        params: say how many labels are enough and how long a lease lasts.
        batch: number of the next label batch; its delivery is at least prepared.
        deliveries: those the provider has.
        collected_at: time of the collection, with time zone.

    Raises:
        UserError: annotations were returned and every one of them was rejected.
        ProviderError: the provider does not answer.
    """
    if workspace.label_batch(batch).is_file():  # an attempt before this one failed right after writing it
        finalize_collection(workspace, batch)
        num_images = len(read_batch(workspace.label_batch(batch)).images)
        return CollectionResult(num_images, 0, f"Batch {batch}: {count(num_images, 'image')} labeled.")
    collector = LabelCollector(workspace, provider, params, collected_at)
    collector.fetch(deliveries)
    images, _ = collector.new_annotations()  # secondary annotations alone make no batch
    num_new = sum(label.checks_batch is None for label in images)
    has_too_few = num_new < params.nightly.min_new_labels and params.nightly.on_few_labels == "skip"
    if not images or (has_too_few and collector.has_active_leases(deliveries)):
        return _finish_without_batch(workspace, provider, deliveries, collector)
    collector.withdraw(deliveries)
    label_batch = _label_batch(batch, provider.name, collected_at, collector)
    _write_label_batch(workspace, label_batch)
    num_images, num_rejected = len(label_batch.images), collector.num_new_rejections
    num_checked = sum(label.checks_batch is not None for label in label_batch.images)
    checked = f", {count(num_checked, 'label')} checked" if num_checked else ""
    labeled = count(num_images - num_checked, "image")
    counts = f"{labeled} labeled{checked}, {num_rejected} rejected, {collector.num_expired()} withdrawn"
    message = f"Batch {batch}: {counts}, {len(label_batch.leased)} still with the annotators."
    message += _clock_skew_warning(label_batch)
    return CollectionResult(num_images, num_rejected, message, tuple(collector.provider_errors))


def finalize_collection(workspace: Workspace, round_number: int) -> None:
    """Complete the steps after the batch file was written; changes nothing where they are complete."""
    store = read_labels(workspace.labels)
    for delivery in all_annotation_batches(workspace):
        if delivery.batch > round_number:
            continue
        if delivery.state == "delivered" and not open_images(delivery, store):
            set_state(delivery, "collected", delivery.receipt)
        remove_archived_files(delivery)
    git.commit(workspace, f"Collect labels of batch {round_number}", git.SOURCE_PATHS)


def _fault(delivery: AnnotationBatch, error: Exception) -> ProviderError:
    """Turn a fault in one delivery into a message: it must not keep back the labels of the others."""
    _log.error("the annotations of batch %d cannot be collected", delivery.batch, exc_info=error)
    problem = f"collecting its annotations failed ({type(error).__name__}: {error}), expected no error"
    return ProviderError(f"batch {delivery.batch}", problem, "See the log.")


class LabelCollector:
    """Collects and validates the annotations of several deliveries, and withdraws images from the annotators."""

    def __init__(self, workspace: Workspace, provider: LabelProvider, params: Params, collected_at: datetime) -> None:
        """Read the label batches and the quarantine; ``collected_at`` has a time zone."""
        self._workspace, self._provider, self._params, self._collected_at = workspace, provider, params, collected_at
        self._store = read_labels(workspace.labels)
        self._released = released_annotations(workspace, self._store.all_answers)
        self._labels: dict[int, tuple[LabeledImage, ...]] = {}
        self._withdrawn: set[_AnnotationKey] = set()
        self._checks = {
            (image_id, delivery.batch)
            for delivery in all_annotation_batches(workspace)
            for image_id in delivery.checked_ids
        }
        """Labels that were offered to be checked, and honeypots."""
        self._honeypots: dict[int, tuple[LabeledImage, ...]] = {}
        self.rejections: list[Rejection] = []
        """Of all deliveries, including those rejected before."""
        self.new_rejections: list[Rejection] = []
        """Those that the quarantine did not hold before."""
        self.provider_errors: list[ProviderError] = []
        """Errors about single deliveries."""

    def fetch(self, deliveries: Iterable[AnnotationBatch]) -> None:
        """Collect and validate the annotations of each delivery; an error about one does not affect the others.

        Raises:
            ProviderError: the provider does not answer.
        """
        for delivery in deliveries:
            try:
                self._fetch_one(delivery)
            except UserError as error:
                if error.transient:
                    raise
                self.provider_errors.append(ProviderError.of(error))
            except Exception as error:
                self.provider_errors.append(_fault(delivery, error))

    @property
    def num_new_rejections(self) -> int:
        """Number of annotations rejected for the first time; notes about accepted ones do not count."""
        return sum(rejection.kind != "note" for rejection in self.new_rejections)

    def new_annotations(self) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
        """Return the new labels so far, primary ones (at most one per image) and secondary ones, by image id."""
        return resolve_conflicts(
            (label for labels in self._labels.values() for label in labels), self._store.all_annotations
        )

    def new_honeypots(self) -> tuple[LabeledImage, ...]:
        """Return the answers to honeypots that no label batch holds as they are, by image id and annotator."""
        known = {annotator_key(label): label for label in self._store.honeypots}
        found = [label for labels in self._honeypots.values() for label in labels]
        new = [
            label
            for label in found
            if (old := known.get(annotator_key(label))) is None or not label.has_same_content(old)
        ]
        return tuple(sorted(new, key=annotator_key))

    def has_active_leases(self, deliveries: Iterable[AnnotationBatch]) -> bool:
        """Whether an image is with the annotators whose lease has not expired."""
        annotated = self._annotated_keys()
        active = (delivery for delivery in deliveries if not self._is_lease_expired(delivery))
        return any(self._unannotated(delivery, annotated) for delivery in active)

    def withdraw(self, deliveries: Iterable[AnnotationBatch]) -> None:
        """Withdraw images whose lease has expired, and images that were annotated in another delivery.

        Annotations finished at the last moment are collected. Images that the provider does not give back stay leased.
        """
        annotated = self._annotated_keys()
        for delivery in deliveries:
            image_ids = self._to_withdraw(delivery, annotated)
            if not image_ids:
                continue
            try:
                self._provider.withdraw(delivery, image_ids)
                self._fetch_one(delivery)
            except UserError as error:
                self.provider_errors.append(ProviderError.of(error))
            except Exception as error:
                self.provider_errors.append(_fault(delivery, error))
            else:
                annotated = self._annotated_keys()
                self._withdrawn |= {(image_id, delivery.batch) for image_id in image_ids}

    def leased_images(self) -> dict[str, int]:
        """Map the images that stay with the annotators to the batch in which they were offered, by image id."""
        closed = self._annotated_keys() | self._withdrawn
        pairs = [
            (image_id, delivery.batch)
            for delivery in all_annotation_batches(self._workspace)
            for image_id in open_images(delivery, self._store)
        ]
        return dict(sorted(pair for pair in pairs if pair not in closed))

    def num_expired(self) -> int:
        """Count the images that were withdrawn without an annotation, and the labels that were not checked."""
        return len(self._unanswered(self._withdrawn, self._annotated_keys()))

    def _fetch_one(self, delivery: AnnotationBatch) -> None:
        raw_annotations = [*self._provider.collect(delivery), *self._released.get(delivery.batch, ())]
        approved = approved_annotations(self._workspace, delivery.batch)
        context = read_validation_context(self._workspace, self._params, delivery, self._collected_at, approved)
        validated = validate_batch(raw_annotations, context, self._store.all_annotations)
        self.new_rejections += add_to_quarantine(self._workspace, validated.rejections)
        self.rejections += validated.rejections
        self._labels[delivery.batch] = (*validated.primary, *validated.secondary)
        self._honeypots[delivery.batch] = validated.honeypots

    def _annotated_keys(self) -> set[_AnnotationKey]:
        earlier = (label for labels in self._store.all_annotations.values() for label in labels)
        now = (label for found in (self._labels, self._honeypots) for labels in found.values() for label in labels)
        answers = (earlier, now, self._store.honeypots)
        return {(label.image_id, label.offered_batch) for labels in answers for label in labels}

    def _unannotated(self, delivery: AnnotationBatch, annotated: Set[_AnnotationKey]) -> Sequence[str]:
        return [i for i in open_images(delivery, self._store) if (i, delivery.batch) not in annotated]

    def _to_withdraw(self, delivery: AnnotationBatch, annotated: Set[_AnnotationKey]) -> Collection[str]:
        unannotated = self._unannotated(delivery, annotated)
        if self._is_lease_expired(delivery) or not unannotated:
            return unannotated
        unanswered = self._unanswered({(image_id, delivery.batch) for image_id in unannotated}, annotated)
        return [image_id for image_id in unannotated if (image_id, delivery.batch) not in unanswered]

    def _unanswered(self, offered: Set[_AnnotationKey], annotated: Set[_AnnotationKey]) -> set[_AnnotationKey]:
        """Return what has no answer from any delivery: every label to be checked has one, so only a check counts."""
        labeled = {image_id for image_id, _ in annotated}
        checked = {image_id for image_id, _ in annotated & self._checks}
        return {key for key in offered if key[0] not in (checked if key in self._checks else labeled)}

    def _is_lease_expired(self, delivery: AnnotationBatch) -> bool:
        return self._collected_at >= lease_expires_at(delivery, self._params.provider.lease_days)


def _label_batch(number: int, provider: str, collected_at: datetime, collector: LabelCollector) -> LabelBatch:
    images, secondary = collector.new_annotations()
    return LabelBatch(
        batch=number,
        provider=provider,
        collected_at=collected_at.isoformat(timespec="seconds"),
        images=images,
        other_annotations=secondary,
        honeypots=collector.new_honeypots(),
        leased=collector.leased_images(),
    )


def _clock_skew_warning(label_batch: LabelBatch) -> str:
    annotations = (*label_batch.images, *label_batch.other_annotations)
    annotators = sorted({label.annotator for label in annotations if label.reported_finished_at is not None})
    if not annotators:
        return ""
    return f" The clock of {', '.join(annotators)} is ahead: the time of the collection is used as their finish time."


def _write_label_batch(workspace: Workspace, batch: LabelBatch) -> None:
    delivery = read_annotation_batch(workspace, batch.batch)
    if delivery is None:
        folder = workspace.delivery(batch.batch)
        fix = f"Restore it: git checkout -- deliveries/{folder.name}"
        raise UserError(folder, "the delivery of the label batch is missing", fix)
    archive_round_outputs(workspace, delivery)
    dvc.add(workspace, workspace.detections_at_selection, workspace.warm_start)
    files.write_json(workspace.label_batch(batch.batch), batch.model_dump(mode="json"))
    finalize_collection(workspace, batch.batch)


def _finish_without_batch(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[AnnotationBatch], collector: LabelCollector
) -> CollectionResult:
    """Change nothing but the quarantine.

    Raises:
        UserError: annotations were returned and every one of them was rejected.
    """
    if collector.new_rejections:
        message = f"Quarantine {count(len(collector.new_rejections), 'annotation')}"
        git.commit(workspace, message, (workspace.quarantine.name,))
    images, _ = collector.new_annotations()
    if collector.num_new_rejections and not images and not collector.provider_errors:
        raise _all_rejected_error(workspace, collector)
    too_few = f"{count_are(len(images), 'image')} newly labeled, fewer than nightly.min_new_labels"
    message = too_few if images else _no_labels_message(workspace, provider, deliveries, collector)
    return CollectionResult(
        0, collector.num_new_rejections, f"{message}: no new round.", tuple(collector.provider_errors)
    )


def _no_labels_message(
    workspace: Workspace, provider: LabelProvider, deliveries: Sequence[AnnotationBatch], collector: LabelCollector
) -> str:
    """Count the open images, as the provider reports them."""
    store = read_labels(workspace.labels)
    counts = []
    for delivery in deliveries:
        if not open_images(delivery, store):
            continue
        try:
            progress = provider.status(delivery)
        except UserError as error:
            collector.provider_errors.append(ProviderError.of(error))
            continue
        counts.append(f"batch {delivery.batch}: {progress.finished} finished, {progress.open} open")
    return f"No new labels ({'; '.join(counts) or 'nothing is with the annotators'})"


def _all_rejected_error(workspace: Workspace, collector: LabelCollector) -> UserError:
    first = collector.rejections[0].quarantined
    problem = f"the number of valid annotations is 0 of {len(collector.rejections)}, expected at least 1"
    return UserError(workspace.quarantine, problem, f"The first rejected one is {first.item}: {first.reason}.")
