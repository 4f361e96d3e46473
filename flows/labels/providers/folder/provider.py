"""The label provider of kind ``folder``: work goes out through ``outbox/``, answers come back through ``inbox/``."""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from flows.labels.deliveries import MANIFEST, read_manifest
from flows.labels.providers.base import Delivery, LabelingProgress, Returned
from flows.labels.providers.consensus import drawn_for_two
from flows.labels.providers.folder.inbox import Inbox, read_inbox
from flows.labels.providers.folder.outbox import offered_names, publish_batch, read_complete
from flows.labels.providers.folder.place import Place, place_at
from tasks.people_sections import ProviderParams

_log = logging.getLogger(__name__)
_WITHDRAWN = "withdrawn.json"
_UNNAMED = "annotator"
_SECOND_UNNAMED = "second annotator"


class FolderProvider:
    """A directory or an s3:// prefix that the annotators' own tools work with."""

    name = "folder"

    def __init__(self, params: ProviderParams, classes: Sequence[str], root: Path) -> None:
        """Take where the folders are, the class names, and the campaign's folder."""
        self._location, self._consensus_frac = params.location, params.consensus_frac
        self._classes, self._root = list(classes), root

    @property
    def _place(self) -> Place:
        return place_at(self._location, self._root)

    def check(self) -> None:
        """Refuse a location that is missing or cannot be written.

        Raises:
            ProviderError: what is wrong with it.
        """
        self._place.check()

    def deliver(self, delivery: Delivery) -> str:
        """Publish ``outbox/batch-0003``, and ``-second`` with the share that two annotators label."""
        self.check()
        tasks = read_manifest(delivery.folder / MANIFEST)
        first, second = _folder_names(delivery)
        publish_batch(self._place, first, delivery, tasks, self._classes, self._root)
        drawn = drawn_for_two(delivery.image_ids, self._consensus_frac, delivery.key)
        doubled = [task for task in tasks if task.image_id in drawn]
        if doubled:
            publish_batch(self._place, second, delivery, doubled, self._classes, self._root)
        return self._place.where(f"outbox/{first}")

    def status(self, delivery: Delivery) -> LabelingProgress:
        """Count images that at least one annotator has answered."""
        answered = {answer["image_id"] for inbox in self._inboxes(delivery) for answer in inbox.answers}
        return LabelingProgress(finished=len(answered), open=len(delivery.image_ids) - len(answered))

    def collect(self, delivery: Delivery) -> Sequence[Returned]:
        """Every answer the inboxes hold, and after them what could not be understood.

        Files that are not whole yet, and images nobody has marked as finished, are named in the log.
        """
        inboxes = self._inboxes(delivery)
        for inbox in inboxes:
            for words in inbox.waiting:
                _log.warning("inbox of batch %d: %s, left for the next night", delivery.batch, words)
        return [answer for inbox in inboxes for answer in (*inbox.answers, *inbox.troubles)]

    def withdraw(self, delivery: Delivery, image_ids: Collection[str]) -> None:
        """Name the images in ``withdrawn.json``; a file system takes nothing back from who has copied it."""
        place = self._place
        for name in _folder_names(delivery):
            if read_complete(place, name) is None:
                continue
            path = f"outbox/{name}/{_WITHDRAWN}"
            known = _ids_in(place.find(path))
            wanted = known | (set(image_ids) & set(delivery.image_ids))
            if wanted != known:
                place.write(path, (json.dumps({"image_ids": sorted(wanted)}, indent=2) + "\n").encode())

    def _inboxes(self, delivery: Delivery) -> list[Inbox]:
        place = self._place
        offered = offered_names(read_manifest(delivery.folder / MANIFEST))
        found = []
        for name, unnamed in zip(_folder_names(delivery), (_UNNAMED, _SECOND_UNNAMED), strict=True):
            known = read_complete(place, name)
            classes = known.get("classes") if known else None
            usable = classes if isinstance(classes, list) else None
            found.append(read_inbox(place, f"inbox/{name}", offered, usable, unnamed))
        return found


def _folder_names(delivery: Delivery) -> tuple[str, str]:
    """Of the batch, and of the share of it that goes to a second annotator."""
    name = f"batch-{delivery.batch:04d}"
    return name, f"{name}-second"


def _ids_in(content: bytes | None) -> set[str]:
    """Images that were withdrawn before; a file somebody spoiled is written anew."""
    try:
        return set() if content is None else {str(image_id) for image_id in json.loads(content)["image_ids"]}
    except (ValueError, KeyError, TypeError):
        return set()
