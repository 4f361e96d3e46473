"""Answers to all deliveries, put through the door together, and what is taken back from the annotators.

Nothing here is remembered: a collection that was cut off asks again, and comes to the same.
"""

from collections.abc import Collection, Iterable, Sequence, Set
from datetime import datetime

from flows.labels.deliveries import all_annotation_batches
from flows.labels.door.admit import validate_batch
from flows.labels.door.choice import resolve_conflicts
from flows.labels.door.offer import read_validation_context
from flows.labels.door.refusal import Rejection
from flows.labels.leases import lease_expires_at, open_images
from flows.labels.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.labels.quarantine import add_to_quarantine, released_annotations
from tasks.contracts import LabeledImage
from tasks.label_store import read_labels
from tasks.params import Params
from tasks.paths import Workspace

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
