"""What goes out: one folder a batch that an outside tool can work with alone."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flows.annotation.providers.base import AnnotationBatch, ProviderError
from flows.annotation.providers.folder.instructions import render_readme
from flows.annotation.providers.folder.writers import (
    OfferedImage,
    manifest_line,
    to_coco,
    to_voc,
    to_yolo,
    to_yolo_data_yaml,
)
from tasks.data.paths import image_id_from_sha256, resolve_uri
from tasks.data.schemas import AnnotationTask
from tasks.storage import files
from tasks.storage.backends import COMPLETE_MARKER, Storage
from tasks.storage.s3 import is_object_uri

FORMAT_VERSION = 1
"""Raised when a field of ``_COMPLETE`` changes its meaning."""


def publish_batch(
    storage: Storage,
    name: str,
    delivery: AnnotationBatch,
    tasks: Sequence[AnnotationTask],
    classes: Sequence[str],
    root: Path,
) -> None:
    """Make ``outbox/<name>``, unless this very delivery is there already.

    Args:
        place: where.
        name: ``batch-0003``, or ``batch-0003-second``.
        delivery: whose it is.
        tasks: the images of this folder.
        classes: class names in the order of their numbers.
        root: the campaign, which local image uris are relative to.

    Raises:
        ProviderError: the place is out of reach, or holds another campaign's batch of that name.
    """
    folder = f"outbox/{name}"
    existing = read_complete_marker(storage, name)
    if existing is not None:
        if existing.get("key") != delivery.key:
            problem = "the batch is another campaign's, expected a location for this campaign alone"
            raise ProviderError(storage.uri(folder), problem, "Give provider.url another directory or prefix.")
        return
    offered, images = _prepare_images(tasks, root)
    contents: dict[str, bytes | Path] = {**_documents(offered, classes, name), **images}
    digests = {
        path: files.sha256_file(content) if isinstance(content, Path) else files.sha256_bytes(content)
        for path, content in contents.items()
    }
    complete = {"format": FORMAT_VERSION, "key": delivery.key, "batch": delivery.batch, "classes": list(classes)}
    storage.write_batch(
        folder, contents, _json_bytes({**complete, "created_at": delivery.created_at, "sha256": digests})
    )


def read_complete_marker(storage: Storage, name: str) -> dict[str, Any] | None:
    """What ``_COMPLETE`` of an outbox folder says; None where there is none that can be read."""
    content = storage.read_optional(f"outbox/{name}/{COMPLETE_MARKER}")
    try:
        marker = None if content is None else json.loads(content)
    except ValueError:
        return None
    return marker if isinstance(marker, dict) else None


def offered_images(tasks: Sequence[AnnotationTask]) -> list[OfferedImage]:
    """The images under the names they went out with."""
    return [OfferedImage(task, _file_name(task), None) for task in tasks]


def _file_name(task: AnnotationTask) -> str:
    """Images that lie in a bucket stay where they are; local ones come along."""
    if is_object_uri(task.uri):
        return task.uri
    return f"images/{task.image_id}{PurePosixPath(task.uri).suffix}"


def _prepare_images(tasks: Sequence[AnnotationTask], root: Path) -> tuple[list[OfferedImage], dict[str, bytes | Path]]:
    """The images with their digests, and the files to send, each held against its id."""
    offered, to_send = [], {}
    for task in tasks:
        name = _file_name(task)
        if is_object_uri(task.uri):
            offered.append(OfferedImage(task, name, None))
            continue
        path = resolve_uri(root, task.uri)
        if not path.is_file():
            raise ProviderError(path, "the image is missing, expected it in the campaign", "Run: dvc checkout")
        sha256 = files.sha256_file(path)
        if image_id_from_sha256(sha256) != task.image_id:
            problem = f"the SHA-256 begins with {image_id_from_sha256(sha256)}, expected {task.image_id}"
            raise ProviderError(path, problem, "Restore the image: dvc checkout")
        offered.append(OfferedImage(task, name, sha256))
        to_send[name] = path
    return offered, dict(to_send)


def _documents(offered: Sequence[OfferedImage], classes: Sequence[str], name: str) -> dict[str, bytes]:
    lines = [json.dumps(manifest_line(image)) + "\n" for image in offered]
    documents = {
        "README.md": render_readme(name, classes, len(offered)).encode(),
        "manifest.jsonl": "".join(lines).encode(),
        "coco.json": _json_bytes(to_coco(offered, classes, preannotated=False)),
        "preannotations/coco.json": _json_bytes(to_coco(offered, classes, preannotated=True)),
        "preannotations/yolo/data.yaml": to_yolo_data_yaml(classes),
    }
    for image in offered:
        documents[f"preannotations/yolo/labels/{image.task.image_id}.txt"] = to_yolo(image.task, classes)
        documents[f"preannotations/voc/{image.task.image_id}.xml"] = to_voc(image)
    return documents


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
