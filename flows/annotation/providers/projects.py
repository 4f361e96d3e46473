"""The project of a campaign on an annotation server: its name, whom it belongs to, and what people delete of it."""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from flows.annotation.batches import offered_tasks, open_images
from flows.annotation.providers.base import (
    AnnotationBatch,
    ProviderError,
    own_folder,
    sample_for_double_annotation,
)
from flows.workspace import git
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask
from tasks.runtime.formatting import count

_SHORT_ID_LENGTH, _MAX_NAME_LENGTH = 8, 50
_OWNER = re.compile(r"Owner: ([0-9a-f]{32}), (.*)")
"""Line of a text that people can edit too: the folder of the campaign that works with the project."""


def project_marker(root: Path) -> str:
    """Return the end of the project's name, by which it is found."""
    return f" ({git.campaign_id(root)[:_SHORT_ID_LENGTH]})"


def project_name(root: Path) -> str:
    """Return the project's name: that of the folder, with the marker."""
    marker = project_marker(root)
    return root.resolve().name[: _MAX_NAME_LENGTH - len(marker)] + marker


def owner_line(root: Path) -> str:
    """Return the line that names the owner to people and to ``stated_owner``; empty where the folder has no record."""
    own = own_folder(root)
    return "" if own is None else f"Owner: {own.owner_id}, {own.place}"


def stated_owner(text: str) -> tuple[str | None, str]:
    """Return owner id and place of a text with an owner line; None where a person has removed it."""
    match = _OWNER.search(text)
    return (match[1], match[2]) if match else (None, "another folder")


def without_owner_line(text: str) -> str:
    """Return a text without its owner line."""
    return _OWNER.sub("", text).rstrip()


def take_over_project(root: Path, text: str, write: Callable[[], None]) -> str | None:
    """Enter a folder as owner, unless it is the owner already.

    Args:
        root: of the campaign.
        text: of the project, with the owner line of the former owner.
        write: writes the new owner line to the server.

    Returns:
        Place of the former owner; None where there was none, or this folder was it.
    """
    own = own_folder(root)
    former_id, former_place = stated_owner(text)
    if own is None or former_id == own.owner_id:
        return None
    write()
    return None if former_id is None else former_place


def tasks_to_offer(
    delivery: AnnotationBatch, double_annotation_frac: float
) -> tuple[list[AnnotationTask], frozenset[str]]:
    """Return the tasks of the delivery's images, and the images of the whole batch that two people label.

    Raises:
        UserError: the manifest is missing or unreadable.
    """
    manifest = offered_tasks(delivery)
    tasks = [task for task in manifest if task.image_id in delivery.image_ids]
    new_ids = [task.image_id for task in manifest if task.checks_batch is None and not task.is_honeypot]
    return tasks, sample_for_double_annotation(new_ids, double_annotation_frac, delivery.key)


def unfinished_images(workspace: Workspace, delivery: AnnotationBatch) -> tuple[str, ...]:
    """Return the ids of a batch's images that have no label yet and are not taken back."""
    return open_images(delivery, read_labels(workspace.labels))


def deleted_images(workspace: Workspace, delivery: AnnotationBatch, present: Collection[str]) -> tuple[str, ...]:
    """Return the unfinished images of a batch that are not on the server any more."""
    return tuple(image_id for image_id in unfinished_images(workspace, delivery) if image_id not in present)


def offer_again(
    where: str, workspace: Workspace, delivery: AnnotationBatch, deliver: Callable[[AnnotationBatch], str]
) -> None:
    """Offer the unfinished images of a batch whose project was deleted; a finished batch needs no project.

    Args:
        where: the server, for the error.
        workspace: of the campaign.
        delivery: the batch.
        deliver: makes the project and offers images in it; returns its address.

    Raises:
        ProviderError: that the project was deleted, once its images are offered again.
    """
    unfinished = unfinished_images(workspace, delivery)
    if unfinished:
        url = deliver(replace(delivery, image_ids=unfinished))
        problem = f"the campaign's project was deleted with {count(len(unfinished), 'image')} of batch {delivery.batch}"
        fix = f"They are offered again, in {url}. Annotations that no run had collected are lost."
        raise ProviderError(where, problem, fix)
