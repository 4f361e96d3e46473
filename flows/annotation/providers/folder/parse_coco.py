"""COCO JSON that comes back: one file for many images, finished or not.

An image that stands in ``images`` says nothing about whether anybody opened it. It counts as finished where the
document says so: a list ``reviewed`` (ids or names of images), ``"reviewed": true`` or a ``status`` on the image.
Otherwise it is finished only if its boxes are not the pre-drawn ones: ``inbox.py`` sees to that.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from flows.annotation.providers.folder.parsed import (
    ParsedAnnotation,
    TruncatedFileError,
    UnsupportedFormatError,
    is_complete,
)
from tasks.data.importers.coco import CocoAnnotation, CocoCategory, CocoImage, format_coco_error

_LISTS = ("images", "annotations", "categories")


class _CocoImageWithReview(CocoImage):
    """With what an annotator's tool may say of its work."""

    reviewed: Any = None
    status: Any = None
    annotator: Any = None
    finished_at: Any = None
    seconds_spent: Any = None
    sha256: Any = None


class _CocoAnnotationWithAttributes(CocoAnnotation):
    """With the place where CVAT writes a rotation."""

    attributes: Any = None


def parse_coco(content: bytes) -> list[ParsedAnnotation]:
    """Read a whole document.

    Raises:
        CutOffError: it ends too early.
        NotUnderstoodError: it is no COCO document.
    """
    document = _parse_document(content)
    images, malformed_images = _parse_images(document["images"])
    names = _parse_categories(document["categories"])
    boxes, problems = _parse_boxes(document["annotations"], images, names)
    info = document.get("info")
    author = info.get("annotator") if isinstance(info, dict) else None
    reviewed = _reviewed_keys(document.get("reviewed"))
    parsed = [
        _parsed_annotation(image, tuple(boxes[key]), problems.get(key), author, reviewed)
        for key, image in images.items()
    ]
    unmatched = [
        ParsedAnnotation(f"image {key!r}", problem=text) for key, text in problems.items() if key not in images
    ]
    return [*parsed, *malformed_images, *unmatched]


def _parse_document(content: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8 or no JSON, numbers of 5000 digits too
        if not is_complete(content, b"}", b"]"):
            raise TruncatedFileError("the JSON ends too early") from None
        raise UnsupportedFormatError(f"the content is no JSON ({error}), expected COCO") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in _LISTS):
        raise UnsupportedFormatError(f"the JSON is no COCO document, expected the lists {', '.join(_LISTS)}")
    return document


def _parse_images(entries: list[Any]) -> tuple[dict[Any, _CocoImageWithReview], list[ParsedAnnotation]]:
    """Images by their id in the document; one id or name for two images makes them useless."""
    images: dict[Any, _CocoImageWithReview] = {}
    malformed_images = []
    for position, entry in enumerate(entries):
        try:
            image = _CocoImageWithReview.model_validate(entry)
        except ValidationError as error:
            malformed_images.append(ParsedAnnotation(_image_name(entry, position), problem=format_coco_error(error)))
            continue
        if images.setdefault(image.id, image) != image:
            malformed_images.append(
                ParsedAnnotation(
                    image.file_name, problem=f"image id {image.id} stands for several images, expected one"
                )
            )
    times = Counter(image.file_name for image in images.values())
    for key in [key for key, image in images.items() if times[image.file_name] > 1]:
        problem = f"the file name stands under {times[images[key].file_name]} image ids, expected one"
        malformed_images.append(ParsedAnnotation(images.pop(key).file_name, problem=problem))
    return images, malformed_images


def _image_name(entry: Any, position: int) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else f"images[{position}]"


def _parse_categories(entries: list[Any]) -> dict[Any, str]:
    """Names by category id; an id with two names is none, so that its boxes are refused."""
    names: dict[Any, str] = {}
    ambiguous = set()
    for entry in entries:
        try:
            category = CocoCategory.model_validate(entry)
        except ValidationError:
            continue  # a box of it is refused, by its id
        if names.setdefault(category.id, category.name) != category.name:
            ambiguous.add(category.id)
    return {key: name for key, name in names.items() if key not in ambiguous}


def _parse_boxes(
    entries: list[Any], images: Mapping[Any, _CocoImageWithReview], names: Mapping[Any, str]
) -> tuple[Mapping[Any, list[Mapping[str, Any]]], dict[Any, str]]:
    """Boxes by image id, and the first problem of each image that has one."""
    boxes: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    problems: dict[Any, str] = {}
    for position, entry in enumerate(entries):
        where = f"annotations[{position}]"
        try:
            annotation = _CocoAnnotationWithAttributes.model_validate(entry)
        except ValidationError as error:
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            key = image_id if isinstance(image_id, int | str) else where
            problems.setdefault(key, f"{where}: {format_coco_error(error)}")
            continue
        problem = _annotation_problem(annotation, images, names)
        if problem:
            problems.setdefault(annotation.image_id, f"{where}: {problem}")
        else:
            boxes[annotation.image_id].append(_parse_box(annotation, names))
    return boxes, problems


def _annotation_problem(
    annotation: _CocoAnnotationWithAttributes, images: Mapping[Any, _CocoImageWithReview], names: Mapping[Any, str]
) -> str | None:
    if annotation.image_id not in images:
        return f"image_id is {annotation.image_id!r}, expected the id of one usable image of the file"
    if annotation.category_id not in names:
        return f"category_id is {annotation.category_id!r}, expected one of {sorted(names, key=str)[:20]}"
    return "it is a crowd region, expected the box of one object" if annotation.iscrowd else None


def _parse_box(annotation: _CocoAnnotationWithAttributes, names: Mapping[Any, str]) -> Mapping[str, Any]:
    x, y, width, height = annotation.bbox
    attributes = annotation.attributes if isinstance(annotation.attributes, dict) else {}
    return {
        "category": names[annotation.category_id],
        "xyxy_px": [x, y, x + width, y + height],
        "rotation_deg": attributes.get("rotation") or None,
    }


def _reviewed_keys(entries: Any) -> set[Any]:
    return {entry for entry in entries if isinstance(entry, int | str)} if isinstance(entries, list) else set()


def _parsed_annotation(
    image: _CocoImageWithReview,
    boxes: tuple[Mapping[str, Any], ...],
    problem: str | None,
    author: Any,
    reviewed: set[Any],
) -> ParsedAnnotation:
    is_reviewed = image.reviewed is True or image.status is not None or bool({image.id, image.file_name} & reviewed)
    return ParsedAnnotation(
        image=image.file_name,
        boxes=boxes,
        is_reviewed=is_reviewed,
        status=image.status,
        annotator=image.annotator or author,
        finished_at=image.finished_at,
        seconds_spent=image.seconds_spent,
        size_px=(image.width, image.height) if image.width and image.height else None,
        sha256=image.sha256,
        problem=problem,
    )
