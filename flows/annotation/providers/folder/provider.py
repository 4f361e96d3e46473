"""The label provider of kind ``folder``: work goes out through ``outbox/``, answers come back through ``inbox/``."""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, RawAnnotation
from flows.annotation.providers.double_annotation import sample_for_double_annotation
from flows.annotation.providers.folder.inbox import Inbox, read_inbox
from flows.annotation.providers.folder.outbox import offered_images, publish_batch, read_complete_marker
from tasks.params.annotation import ProviderParams
from tasks.storage.backends import Storage, open_storage

_log = logging.getLogger(__name__)
_WITHDRAWN = "withdrawn.json"
_DEFAULT_ANNOTATOR = "annotator"
_DEFAULT_SECOND_ANNOTATOR = "second annotator"


class FolderProvider:
    """A directory or an s3:// prefix that the annotators' own tools work with."""

    name = "folder"

    def __init__(self, params: ProviderParams, classes: Sequence[str], root: Path) -> None:
        """Take where the folders are, the class names, and the campaign's folder."""
        self._url, self._double_annotation_frac = params.url, params.double_annotation_frac
        self._classes, self._root = list(classes), root

    @property
    def _storage(self) -> Storage:
        return open_storage(self._url, self._root)

    def check(self) -> None:
        """Refuse a location that is missing or cannot be written.

        Raises:
            ProviderError: what is wrong with it.
        """
        self._storage.check()

    def deliver(self, delivery: AnnotationBatch) -> str:
        """Publish ``outbox/batch-0003``, and ``-second`` with the share that two annotators label."""
        self.check()
        tasks = read_manifest(delivery.folder / MANIFEST)
        first, second = _folder_names(delivery)
        publish_batch(self._storage, first, delivery, tasks, self._classes, self._root)
        sampled = sample_for_double_annotation(delivery.image_ids, self._double_annotation_frac, delivery.key)
        double_annotated = [task for task in tasks if task.image_id in sampled]
        if double_annotated:
            publish_batch(self._storage, second, delivery, double_annotated, self._classes, self._root)
        return self._storage.uri(f"outbox/{first}")

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        """Count images that at least one annotator has answered."""
        annotated = {raw["image_id"] for inbox in self._inboxes(delivery) for raw in inbox.annotations}
        return LabelingProgress(finished=len(annotated), open=len(delivery.image_ids) - len(annotated))

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        """Every answer the inboxes hold, and after them what could not be understood.

        Files that are not whole yet, and images nobody has marked as finished, are named in the log.
        """
        inboxes = self._inboxes(delivery)
        for inbox in inboxes:
            for problem in inbox.unfinished:
                _log.warning("inbox of batch %d: %s, left for the next night", delivery.batch, problem)
        return [raw for inbox in inboxes for raw in (*inbox.annotations, *inbox.problems)]

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        """Name the images in ``withdrawn.json``; a file system takes nothing back from who has copied it."""
        storage = self._storage
        for name in _folder_names(delivery):
            if read_complete_marker(storage, name) is None:
                continue
            path = f"outbox/{name}/{_WITHDRAWN}"
            withdrawn = _parse_image_ids(storage.read_optional(path))
            updated = withdrawn | (set(image_ids) & set(delivery.image_ids))
            if updated != withdrawn:
                storage.write(path, (json.dumps({"image_ids": sorted(updated)}, indent=2) + "\n").encode())

    def _inboxes(self, delivery: AnnotationBatch) -> list[Inbox]:
        storage = self._storage
        offered = offered_images(read_manifest(delivery.folder / MANIFEST))
        found = []
        for name, default_annotator in zip(
            _folder_names(delivery), (_DEFAULT_ANNOTATOR, _DEFAULT_SECOND_ANNOTATOR), strict=True
        ):
            marker = read_complete_marker(storage, name)
            classes = marker.get("classes") if marker else None
            usable = classes if isinstance(classes, list) else None
            found.append(read_inbox(storage, f"inbox/{name}", offered, usable, default_annotator))
        return found


def _folder_names(delivery: AnnotationBatch) -> tuple[str, str]:
    """Of the batch, and of the share of it that goes to a second annotator."""
    name = f"batch-{delivery.batch:04d}"
    return name, f"{name}-second"


def _parse_image_ids(content: bytes | None) -> set[str]:
    """Images that were withdrawn before; a file somebody spoiled is written anew."""
    try:
        return set() if content is None else {str(image_id) for image_id in json.loads(content)["image_ids"]}
    except (ValueError, KeyError, TypeError):
        return set()
