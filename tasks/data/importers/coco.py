"""COCO JSON: ``images``, ``annotations`` (bbox = x, y, width, height, 0-based) and ``categories``.

What is tolerated: string ids, missing annotation ids and sizes, two category ids of one name, extra keys.
Crowd regions (``iscrowd``) are no boxes of one object: they are left out, and noted.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.data.images import ImageMetadata, ImageProblem
from tasks.data.importers.boxes import BoxProblem, validate_box, validate_class_name
from tasks.data.importers.folder import ImageResolver, image_resolver
from tasks.data.importers.import_report import ImageRecord, ImportReport, ImportResult, finish_import
from tasks.data.schemas import Box
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.storage import files

Id = int | str


class CocoEntry(BaseModel):
    """What is read of an entry; other keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CocoCategory(CocoEntry):
    """A class."""

    id: Id
    name: str


class CocoImage(CocoEntry):
    """An image; sizes in pixels."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class CocoAnnotation(CocoEntry):
    """A box: x, y, width, height in pixels, 0-based."""

    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    iscrowd: int = 0


EntryT = TypeVar("EntryT", bound=CocoEntry)


def read_coco(annotations: Path, images: Path | ImageResolver, *, max_pixels: int) -> ImportResult:
    """Read a COCO detection file.

    Args:
        annotations: the JSON file.
        images: what ``file_name`` is relative to.
        max_pixels: images with more pixels are set aside undecoded.

    Raises:
        UserError: the file is missing, no COCO document, empty, or none of its images can be used.
    """
    resolver = image_resolver(images, max_pixels=max_pixels)
    document = _document(annotations)
    report = ImportReport()
    categories = _categories(document["categories"], report, annotations.name)
    entries = _images(document["images"], report, annotations.name)
    boxes_of = _group_by_image(document["annotations"], entries, report, annotations.name)
    records = _records(entries, boxes_of, categories, resolver, report)
    return finish_import(annotations, list(records), report)


def _document(path: Path) -> dict[str, list[Any]]:
    try:
        content = files.read_json(path)
    except (
        ValueError,
        RecursionError,
        OSError,
    ) as error:  # numbers of 5000 digits, brackets 1000 deep, a folder
        raise UserError(path, f"the content is unreadable ({error}), expected COCO JSON", "Check --format.") from None
    if not isinstance(content, dict):
        raise UserError(path, f"the content is a {type(content).__name__}, expected a COCO object", "Check --format.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(path, f"the list {key!r} is missing, expected COCO JSON", "Check --format.")
    for key in ("images", "categories"):
        if not content[key]:
            raise UserError(path, f"the list {key!r} is empty, expected at least one entry")
    return content


def _parse_entries(raw: Iterable[Any], entry_class: type[EntryT], report: ImportReport, where: str) -> Iterator[EntryT]:
    """Entries that have the fields they need; the others are named and set aside."""
    for position, entry in enumerate(raw):
        try:
            yield entry_class.model_validate(entry)
        except ValidationError as error:
            report.reject(_entry_name(where, entry_class, position), format_coco_error(error))


def _entry_name(where: str, entry_class: type[CocoEntry], position: int) -> str:
    lists = {CocoCategory: "categories", CocoImage: "images", CocoAnnotation: "annotations"}
    return f"{where}: {lists[entry_class]}[{position}]"


def format_coco_error(error: ValidationError) -> str:
    """The first thing wrong with an entry, as a reason to set it aside."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the entry"
    return f"{key} is {json.dumps(first['input'], default=str)[:60]}, expected a COCO field ({first['msg']})"


def _categories(raw: list[Any], report: ImportReport, where: str) -> dict[Id, str]:
    names: dict[Id, str] = {}
    ambiguous: set[Id] = set()
    for category in _parse_entries(raw, CocoCategory, report, where):
        try:
            name = validate_class_name(category.name)
        except BoxProblem as problem:
            report.reject(f"{where}: category id {category.id}", str(problem))
            continue
        if names.setdefault(category.id, name) != name:
            ambiguous.add(category.id)
    for category_id in ambiguous:
        del names[category_id]
        report.reject(f"{where}: category id {category_id}", "the id has several names, expected one")
    return names


def _images(raw: list[Any], report: ImportReport, where: str) -> dict[Id, CocoImage]:
    """Image entries by id. An id or a file name that stands for two things makes all of them unusable."""
    entries: dict[Id, CocoImage] = {}
    id_of_name: dict[str, Id] = {}
    for image in _parse_entries(raw, CocoImage, report, where):
        known = entries.setdefault(image.id, image)
        if known != image:
            for one in (known, image):
                report.reject_image(one.file_name, f"image id {image.id} stands for several images, expected one")
        elif known is not image:
            report.note(image.file_name, f"image id {image.id} is listed twice alike, kept once")
        if id_of_name.setdefault(image.file_name, image.id) != image.id:
            report.reject_image(image.file_name, "the file name stands under several image ids, expected one")
    return entries


def _group_by_image(
    raw: list[Any], entries: dict[Id, CocoImage], report: ImportReport, where: str
) -> dict[Id, list[CocoAnnotation]]:
    """Annotations of each image, copies left out; what cannot be read makes its image unusable."""
    boxes_of: dict[Id, list[CocoAnnotation]] = defaultdict(list)
    seen: dict[Id, CocoAnnotation] = {}
    for position, entry in enumerate(raw):
        try:
            annotation = CocoAnnotation.model_validate(entry)
        except ValidationError as error:
            _reject_annotation(
                entry, entries, report, _entry_name(where, CocoAnnotation, position), format_coco_error(error)
            )
            continue
        if annotation.image_id not in entries:
            reason = f"image_id is {annotation.image_id!r}, expected the id of an image in the file"
            report.reject(_entry_name(where, CocoAnnotation, position), reason)
        elif _is_new(annotation, seen, entries, report):
            boxes_of[annotation.image_id].append(annotation)
    return boxes_of


def _reject_annotation(entry: Any, entries: dict[Id, CocoImage], report: ImportReport, where: str, reason: str) -> None:
    image_id = entry.get("image_id") if isinstance(entry, dict) else None
    if isinstance(image_id, (int, str)) and image_id in entries:
        report.reject_image(entries[image_id].file_name, f"{where}: {reason}")
    else:
        report.reject(where, reason)


def _is_new(
    annotation: CocoAnnotation, seen: dict[Id, CocoAnnotation], entries: dict[Id, CocoImage], report: ImportReport
) -> bool:
    """Whether the annotation counts, given the ones with the same id.

    Ids are not used for anything else. Two boxes of one id on one image: nobody can say which one was meant.
    On different images (files joined without numbering them anew) both boxes stand.
    """
    if annotation.id is None:
        return True
    known = seen.setdefault(annotation.id, annotation)
    if known is annotation:
        return True
    file_name = entries[annotation.image_id].file_name
    if known == annotation:
        report.note(file_name, f"annotation id {annotation.id} is listed twice alike, kept once")
        return False
    if known.image_id == annotation.image_id:
        report.reject_image(file_name, f"annotation id {annotation.id} stands for several boxes, expected one")
    else:
        other = entries[known.image_id].file_name
        report.note(file_name, f"annotation id {annotation.id} also stands on {other}, both boxes kept")
    return True


def _records(
    entries: dict[Id, CocoImage],
    boxes_of: dict[Id, list[CocoAnnotation]],
    categories: dict[Id, str],
    resolver: ImageResolver,
    report: ImportReport,
) -> Iterator[ImageRecord]:
    for image_id, entry in track(entries.items(), "reading images", total=len(entries)):
        if entry.file_name in report.rejected_images:
            continue
        try:
            path, metadata = resolver.inspect(entry.file_name)
            _check_size(entry, metadata)
            boxes = _boxes(boxes_of.get(image_id, []), categories, entry.file_name, metadata, report)
        except (ImageProblem, BoxProblem) as problem:
            report.reject_image(entry.file_name, str(problem))
            continue
        yield ImageRecord(entry.file_name, path, metadata, boxes)


def _check_size(entry: CocoImage, metadata: ImageMetadata) -> None:
    annotated_size = (entry.width or metadata.width_px, entry.height or metadata.height_px)
    if annotated_size != (metadata.width_px, metadata.height_px):
        found = f"{metadata.width_px} x {metadata.height_px} px, as in the file"
        raise ImageProblem(
            f"the annotated image size is {annotated_size[0]} x {annotated_size[1]} px, expected {found}"
        )


def _boxes(
    annotations: list[CocoAnnotation],
    categories: dict[Id, str],
    file_name: str,
    metadata: ImageMetadata,
    report: ImportReport,
) -> tuple[Box, ...]:
    boxes: list[Box] = []
    clipped = 0
    for annotation in annotations:
        if annotation.iscrowd:
            report.note(file_name, "a crowd region is left out, it is not the box of one object")
            continue
        if annotation.category_id not in categories:
            known = sorted(categories, key=str)[:20]
            raise BoxProblem(f"category_id is {annotation.category_id!r}, expected one of {known}")
        x, y, width, height = annotation.bbox
        name = categories[annotation.category_id]
        box, was_clipped = validate_box(name, (x, y, x + width, y + height), metadata.width_px, metadata.height_px)
        boxes.append(box)
        clipped += was_clipped
    report.note_clipped(file_name, clipped)
    return tuple(boxes)
