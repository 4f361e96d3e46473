"""Derive the state of every selected image from the deliveries and the label batches.

A label batch lists the images that stayed with the annotators when it was collected. Later deliveries are with them
completely. So there is one record, written at once, and a kill cannot leave two that contradict each other.
"""

from collections import Counter
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Literal, get_args

from flows.annotation.batches import all_annotation_batches
from flows.annotation.providers.base import AnnotationBatch
from tasks.data.label_store import LabelStore, read_labels
from tasks.data.paths import Workspace

ImageState = Literal["labeled", "empty", "skipped", "leased", "offered", "expired"]
"""State of a selected image: annotated (by status), with the annotators, about to be delivered, or withdrawn."""


def open_images(delivery: AnnotationBatch, store: LabelStore) -> tuple[str, ...]:
    """List the images of a delivery that are, or are about to be, with the annotators."""
    if delivery.batch > store.newest_batch:
        return delivery.image_ids
    return tuple(image_id for image_id in delivery.image_ids if store.leased.get(image_id) == delivery.batch)


def num_open(workspace: Workspace) -> int:
    """Count the images that are, or are about to be, with the annotators."""
    store = read_labels(workspace.labels)
    return sum(len(open_images(delivery, store)) for delivery in all_annotation_batches(workspace))


def lease_expires_at(delivery: AnnotationBatch, lease_days: float) -> datetime:
    """Return the time from which unfinished images of a delivery may be withdrawn."""
    return datetime.fromisoformat(delivery.delivered_at or delivery.created_at) + timedelta(days=lease_days)


def image_states(deliveries: Collection[AnnotationBatch], store: LabelStore) -> Counter[ImageState]:
    """Count the images that were ever selected by state; every state is a key."""
    states: dict[str, ImageState] = {}
    for delivery in deliveries:
        open_ids = set(open_images(delivery, store))
        pending_state: ImageState = "offered" if delivery.state == "prepared" else "leased"
        states |= {image_id: pending_state if image_id in open_ids else "expired" for image_id in delivery.image_ids}
    states |= {image_id: store.current[image_id].label.status for image_id in states if image_id in store.current}
    counts: Counter[ImageState] = Counter(dict.fromkeys(get_args(ImageState), 0))
    counts.update(states.values())
    return counts
