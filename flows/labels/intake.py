"""Answers to all deliveries, put through the door together, and what is taken back from the annotators.

Nothing here is remembered: a collection that was cut off asks again, and comes to the same.
"""

from collections.abc import Collection, Iterable, Sequence, Set
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

    def __init__(self, workspace: Workspace, provider: LabelProvider, params: Params, at: datetime) -> None:
        """Read what label batches and the quarantine hold; ``at`` is the time of the collection, with time zone."""
        self._workspace, self._provider, self._params, self._at = workspace, provider, params, at
        self._store = read_labels(workspace.labels)
        self._let_go = released(workspace, self._store.given)
        self._labels: dict[int, tuple[LabeledImage, ...]] = {}
        self._taken_back: set[_Given] = set()
        self.refusals: list[Refusal] = []
        """Of all deliveries, those of earlier nights too."""
        self.newly_set_aside: list[Refusal] = []
        """What the quarantine did not hold before tonight."""
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

    @property
    def newly_refused(self) -> int:
        """Answers that tonight are kept out for the first time; what is only noted of one that went in is none."""
        return sum(refused.kind != "note" for refused in self.newly_set_aside)

    def news(self) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
        """New answers so far: those that count, one an image, and the others; by image id."""
        return choose((label for labels in self._labels.values() for label in labels), self._store.given)

    def waits_for(self, deliveries: Iterable[Delivery]) -> bool:
        """Whether anything is with the annotators whose lease goes on."""
        answered = self._answered()
        going_on = (delivery for delivery in deliveries if not self._is_over(delivery))
        return any(self._unanswered(delivery, answered) for delivery in going_on)

    def take_back(self, deliveries: Iterable[Delivery]) -> None:
        """Withdraw what people had long enough, or what an answer to another delivery has settled.

        What somebody finished at the last moment is fetched. What the provider does not give back stays leased.
        """
        answered = self._answered()
        for delivery in deliveries:
            image_ids = self._to_take_back(delivery, answered)
            if not image_ids:
                continue
            try:
                self._provider.withdraw(delivery, image_ids)
                self._fetch(delivery)
            except ProviderError as error:
                self.troubles.append(error)
            else:
                answered = self._answered()
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
        offer = offer_of(self._workspace, self._params, delivery, self._at)
        admitted = admit(returned, offer, self._store.given)
        self.newly_set_aside += set_aside(self._workspace, admitted.refusals)
        self.refusals += admitted.refusals
        self._labels[delivery.batch] = (*admitted.images, *admitted.others)

    def _answered(self) -> set[_Given]:
        earlier = (label for labels in self._store.given.values() for label in labels)
        now = (label for labels in self._labels.values() for label in labels)
        return {(label.image_id, label.offered_in) for labels in (earlier, now) for label in labels}

    def _unanswered(self, delivery: Delivery, answered: Set[_Given]) -> Sequence[str]:
        return [i for i in open_images(delivery, self._store) if (i, delivery.batch) not in answered]

    def _to_take_back(self, delivery: Delivery, answered: Set[_Given]) -> Collection[str]:
        unanswered = self._unanswered(delivery, answered)
        if self._is_over(delivery):
            return unanswered
        settled = {image_id for image_id, _ in answered} if unanswered else ()
        return [image_id for image_id in unanswered if image_id in settled]

    def _is_over(self, delivery: Delivery) -> bool:
        return self._at >= lease_ends(delivery, self._params.provider.lease_days)
