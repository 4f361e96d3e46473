"""Answers to all deliveries, put through the door together, and what is taken back from the annotators.

Nothing here is remembered: a collection that was cut off asks again, and comes to the same.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from flows.labels.deliveries import all_deliveries
from flows.labels.door.admit import admit
from flows.labels.door.choice import choose
from flows.labels.door.offer import offer_of
from flows.labels.door.refusal import Refusal
from flows.labels.leases import lease_ends, open_images
from flows.labels.providers.base import Delivery, LabelProvider, ProviderError
from flows.labels.quarantine import released, set_aside
from tasks.contracts import LabeledImage
from tasks.label_store import read_labels
from tasks.params import Params
from tasks.paths import Workspace

_Given = tuple[str, int]
"""An image, and the batch it was offered in."""


class Intake:
    """One collection at work."""

    def __init__(self, workspace: Workspace, provider: LabelProvider, params: Params) -> None:
        """Read what label batches and the quarantine hold."""
        self._workspace, self._provider, self._params = workspace, provider, params
        self._store = read_labels(workspace.labels)
        self._let_go = released(workspace, self._store.given)
        self._labels: dict[int, tuple[LabeledImage, ...]] = {}
        self._taken_back: set[_Given] = set()
        self.refusals: list[Refusal] = []
        """Of all deliveries, those of earlier nights too."""
        self.newly_refused = 0
        self.troubles: list[ProviderError] = []
        """What the provider refused to do for single deliveries."""

    def fetch(self, deliveries: Iterable[Delivery]) -> None:
        """Ask for the answers to each delivery; one that the provider has lost does not hold up the others.

        Raises:
            ProviderError: the provider is away, for all of them.
        """
        for delivery in deliveries:
            try:
                self._fetch(delivery)
            except ProviderError as error:
                if error.transient:
                    raise
                self.troubles.append(error)

    def news(self) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
        """New answers so far: those that count, one an image, and the others; by image id."""
        return choose((label for labels in self._labels.values() for label in labels), self._store.given)

    def waits_for(self, deliveries: Iterable[Delivery], at: datetime) -> bool:
        """Whether anything is with the annotators whose lease goes on."""
        return any(self._unanswered(delivery) and not self._is_over(delivery, at) for delivery in deliveries)

    def take_back(self, deliveries: Iterable[Delivery], at: datetime) -> None:
        """Withdraw what people had long enough, or what an answer to another delivery has settled.

        What somebody finished at the last moment is fetched. What the provider does not give back stays leased.
        """
        for delivery in deliveries:
            image_ids = self._to_take_back(delivery, at)
            if not image_ids:
                continue
            try:
                self._provider.withdraw(delivery, image_ids)
                self._fetch(delivery)
            except ProviderError as error:
                self.troubles.append(error)
            else:
                self._taken_back |= {(image_id, delivery.batch) for image_id in image_ids}

    def leased(self) -> dict[str, int]:
        """What stays with the annotators: image id to the batch it was offered in, by image id."""
        gone = self._answered() | self._taken_back
        pairs = [
            (image_id, delivery.batch)
            for delivery in all_deliveries(self._workspace)
            for image_id in open_images(delivery, self._store)
        ]
        return dict(sorted(pair for pair in pairs if pair not in gone))

    def expired(self) -> int:
        """How many images were taken back although nobody answered."""
        answered = {image_id for image_id, _ in self._answered()}
        return sum(image_id not in answered for image_id, _ in self._taken_back)

    def _fetch(self, delivery: Delivery) -> None:
        returned = [*self._provider.collect(delivery), *self._let_go.get(delivery.batch, ())]
        admitted = admit(returned, offer_of(self._workspace, self._params, delivery), self._store.given)
        self.newly_refused += set_aside(self._workspace, admitted.refusals)
        self.refusals += admitted.refusals
        self._labels[delivery.batch] = (*admitted.images, *admitted.others)

    def _answered(self) -> set[_Given]:
        earlier = (label for labels in self._store.given.values() for label in labels)
        now = (label for labels in self._labels.values() for label in labels)
        return {(label.image_id, label.offered_in) for labels in (earlier, now) for label in labels}

    def _unanswered(self, delivery: Delivery) -> Sequence[str]:
        answered = self._answered()
        return [i for i in open_images(delivery, self._store) if (i, delivery.batch) not in answered]

    def _to_take_back(self, delivery: Delivery, at: datetime) -> Collection[str]:
        settled = {image_id for image_id, _ in self._answered()}
        over = self._is_over(delivery, at)
        return [image_id for image_id in self._unanswered(delivery) if over or image_id in settled]

    def _is_over(self, delivery: Delivery, at: datetime) -> bool:
        return at >= lease_ends(delivery, self._params.provider.lease_days)
