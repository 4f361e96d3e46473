"""Publish a batch as a folder for an outside tool: images, tasks, and pre-annotations in four formats."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from flows.annotation.providers.base import AnnotationBatch, ProviderError
from tasks.data.formats.base import ParsedBox, ParsedClass, ParsedDocument, ParsedImage
from tasks.data.formats.coco import write_coco
from tasks.data.formats.ground_truth import write_ground_truth
from tasks.data.formats.voc import write_voc
from tasks.data.formats.yolo import write_yolo, write_yolo_classes
from tasks.data.paths import image_id_from_sha256, resolve_uri
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.runtime.formatting import count
from tasks.storage import files
from tasks.storage.backends import COMPLETE_MARKER, Storage
from tasks.storage.s3 import is_object_uri

REFRESHED = "refreshed.jsonl"
FORMAT_VERSION = 1
"""Increased when a field of ``_COMPLETE`` changes its meaning."""


@dataclass(frozen=True)
class OfferedImage:
    """One image of a published folder."""

    task: AnnotationTask
    file_name: str
    """``images/<image_id>.jpg`` inside the folder, or the image's s3 uri."""
    sha256: str | None
    """Digest of the image's bytes; None for images in an object store, which are not read."""
    refreshed: Sequence[Sequence[Prediction]] = ()
    """Boxes that replaced the pre-drawn ones, newest first; people may have started from any of them."""


def publish_batch(
    storage: Storage,
    name: str,
    delivery: AnnotationBatch,
    tasks: Sequence[AnnotationTask],
    classes: Sequence[str],
    root: Path,
) -> None:
    """Write ``outbox/<name>``, unless this delivery is there already.

    Args:
        storage: of the annotators.
        name: ``batch-0003``, or ``batch-0003-second``.
        delivery: its key is recorded in ``_COMPLETE``.
        tasks: the images of this folder.
        classes: class names in the order of their numbers.
        root: the campaign, to which local image uris are relative.

    Raises:
        StorageError: the storage does not answer or refuses.
        ProviderError: an image is missing, or the folder belongs to another campaign.
    """
    folder = f"outbox/{name}"
    existing = read_complete_marker(storage, name)
    if existing is not None:
        if existing.get("key") != delivery.key:
            problem = "the batch belongs to another campaign, expected a folder or prefix for this campaign alone"
            raise ProviderError(storage.uri(folder), problem, "Set provider.url to another directory or prefix.")
        return
    offered, images = _prepare_images(tasks, root)
    documents = _documents(offered, classes, name, delivery.created_at, storage.uri(folder))
    contents: dict[str, bytes | Path] = {**documents, **images}
    digests = {
        path: files.sha256_file(content) if isinstance(content, Path) else files.sha256_bytes(content)
        for path, content in contents.items()
    }
    complete = {"format": FORMAT_VERSION, "key": delivery.key, "batch": delivery.batch, "classes": list(classes)}
    marker = {**complete, "created_at": delivery.created_at, "sha256": digests}
    storage.write_batch(folder, contents, (json.dumps(marker, indent=2, ensure_ascii=False) + "\n").encode())


def read_complete_marker(storage: Storage, name: str) -> dict[str, Any] | None:
    """Read ``_COMPLETE`` of an outbox folder; None where there is none that can be read."""
    content = storage.read_optional(f"outbox/{name}/{COMPLETE_MARKER}")
    try:
        marker = None if content is None else json.loads(content)
    except ValueError:
        return None
    return marker if isinstance(marker, dict) else None


def offered_images(
    tasks: Sequence[AnnotationTask], refreshed: Mapping[str, Sequence[Sequence[Prediction]]]
) -> list[OfferedImage]:
    """Return the images under the names with which they were published, without digests.

    Args:
        tasks: of the manifest.
        refreshed: boxes that replaced those of the manifest, by image id.
    """
    return [OfferedImage(task, _file_name(task), None, refreshed.get(task.image_id, ())) for task in tasks]


def publish_refreshed(storage: Storage, name: str, tasks: Sequence[AnnotationTask]) -> None:
    """Write ``outbox/<name>/refreshed.jsonl``: open images in their new order, with the newest teacher's boxes.

    ``earlier_predictions`` of a line are the boxes of earlier such files: a tool that copies them has finished nothing.

    Raises:
        StorageError: the storage does not answer or refuses.
    """
    before = read_refreshed(storage, name)
    lines = []
    for task in tasks:
        earlier = [boxes for boxes in before.get(task.image_id, ()) if tuple(boxes) != task.predictions]
        line = _manifest_line(OfferedImage(task, _file_name(task), None))
        line["earlier_predictions"] = [[box.model_dump(mode="json") for box in boxes] for boxes in earlier]
        lines.append(json.dumps(line) + "\n")
    storage.write(f"outbox/{name}/{REFRESHED}", "".join(lines).encode())


def read_refreshed(storage: Storage, name: str) -> dict[str, Sequence[Sequence[Prediction]]]:
    """Read the refreshed boxes of an outbox folder by image id, newest first; none from a file that was damaged."""
    content = storage.read_optional(f"outbox/{name}/{REFRESHED}")
    try:
        entries = [json.loads(line) for line in files.json_lines(content or b"")]
        return {
            str(entry["image_id"]): [
                [Prediction.model_validate(box) for box in boxes]
                for boxes in (entry["predictions"], *entry["earlier_predictions"])
            ]
            for entry in entries
        }
    except (ValueError, KeyError, TypeError):
        return {}


def preannotation_files(
    offered: Sequence[OfferedImage], classes: Sequence[str], created_at: str, folder_uri: str
) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the pre-annotations, as COCO, Ground Truth manifest, YOLO and Pascal VOC.

    Args:
        offered: images with their boxes.
        classes: class names in the order of their numbers.
        created_at: ISO 8601, of the batch.
        folder_uri: where the batch's folder is; in an object store, the manifest has whole addresses, as Ground
            Truth wants.
    """
    document = _document(offered, classes)
    yield "coco.json", write_coco(document)
    addressed = [replace(image, name=_address(image.name, folder_uri)) for image in document.images]
    manifest = replace(document, images=tuple(addressed))
    yield "ground_truth.manifest", write_ground_truth(manifest, created_at=created_at, human_annotated=False)
    yield "yolo/data.yaml", write_yolo_classes(classes)
    for image, parsed in zip(offered, document.images, strict=True):
        # The label files are named by the image id: images in a bucket may share the last part of their name.
        plain = replace(
            parsed,
            name=PurePosixPath(image.file_name).name,
            boxes=[replace(box, score=None, doubt=None) for box in parsed.boxes],
            image_id=None,
        )
        alone = replace(document, images=(plain,))
        ((_, voc),) = write_voc(alone)
        _, (_, labels) = write_yolo(alone)  # the first is data.yaml
        yield f"voc/{image.task.image_id}.xml", voc
        yield f"yolo/labels/{image.task.image_id}.txt", labels


def _address(file_name: str, folder_uri: str) -> str:
    is_inside = is_object_uri(folder_uri) and not is_object_uri(file_name)
    return f"{folder_uri}/{file_name}" if is_inside else file_name


def _document(offered: Sequence[OfferedImage], classes: Sequence[str]) -> ParsedDocument:
    known = tuple(ParsedClass(number, name) for number, name in enumerate(classes))
    return ParsedDocument("coco", "preannotations", known, tuple(_parsed_image(image) for image in offered))


def _parsed_image(image: OfferedImage) -> ParsedImage:
    task = image.task
    return ParsedImage(
        name=image.file_name,
        entry=task.image_id,
        boxes=[_parsed_box(prediction) for prediction in task.predictions],
        image_id=task.image_id,
        width_px=task.width_px,
        height_px=task.height_px,
    )


def _parsed_box(prediction: Prediction) -> ParsedBox:
    second = prediction.runner_up
    runner_up = None if second is None else (second.category, round(second.score, 4))
    return ParsedBox(
        prediction.category,
        prediction.xyxy_px,
        score=round(prediction.score, 4),
        doubt=prediction.doubt,
        runner_up=runner_up,
    )


def _file_name(task: AnnotationTask) -> str:
    """Local images are copied into the folder; those in an object store stay there."""
    if is_object_uri(task.uri):
        return task.uri
    return f"images/{task.image_id}{PurePosixPath(task.uri).suffix}"


def _prepare_images(tasks: Sequence[AnnotationTask], root: Path) -> tuple[list[OfferedImage], dict[str, bytes | Path]]:
    """Return the images with their digests, and the files to copy, each compared with its id."""
    offered: list[OfferedImage] = []
    to_copy: dict[str, bytes | Path] = {}
    for task in tasks:
        name = _file_name(task)
        if is_object_uri(task.uri):
            offered.append(OfferedImage(task, name, None))
            continue
        path = resolve_uri(root, task.uri)
        if not path.is_file():
            raise ProviderError(path, "the image is missing", "Run: dvc checkout")
        sha256 = files.sha256_file(path)
        if image_id_from_sha256(sha256) != task.image_id:
            problem = f"the SHA-256 is {image_id_from_sha256(sha256)}..., expected {task.image_id}..."
            raise ProviderError(path, problem, "Restore the image: dvc checkout")
        offered.append(OfferedImage(task, name, sha256))
        to_copy[name] = path
    return offered, to_copy


def _documents(
    offered: Sequence[OfferedImage], classes: Sequence[str], name: str, created_at: str, folder_uri: str
) -> dict[str, bytes]:
    lines = [json.dumps(_manifest_line(image)) + "\n" for image in offered]
    preannotations = preannotation_files(offered, classes, created_at, folder_uri)
    skeleton = _document(offered, classes)
    blank = replace(skeleton, images=tuple(replace(image, boxes=()) for image in skeleton.images))
    return {
        "README.md": render_readme(name, classes, len(offered)).encode(),
        "manifest.jsonl": "".join(lines).encode(),
        "coco.json": write_coco(blank),
        **{f"preannotations/{path}": content for path, content in preannotations},
    }


def _manifest_line(image: OfferedImage) -> dict[str, Any]:
    """The task, with the name under which the annotator's tool finds the image; what a honeypot is, nobody is told."""
    return {
        **image.task.model_dump(mode="json", exclude={"is_honeypot"}),
        "uri": image.file_name,
        "sha256": image.sha256,
    }


def render_readme(name: str, classes: Sequence[str], num_images: int) -> str:
    """Render the instructions for annotators, in Markdown.

    Args:
        name: of the batch's folder.
        classes: class names in the order of their numbers.
        num_images: images in the batch.
    """
    return _readme_template().render(name=name, classes=classes, images=count(num_images, "image"))


@cache
def _readme_template() -> jinja2.Template:
    loader = jinja2.PackageLoader("flows.annotation", "providers")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.get_template("folder_outbox_readme.md.j2")
