"""What an annotator's tool opens: a COCO skeleton, and the pre-drawn boxes as COCO, YOLO and Pascal VOC.

Written the way ``parse_coco``, ``parse_yolo`` and ``parse_voc`` read.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from tasks.data.schemas import AnnotationTask, Prediction

_DECIMALS = 6
"""Of YOLO's fractions: a hundredth of a pixel in an image 10,000 pixels wide."""


@dataclass(frozen=True)
class OfferedImage:
    """One image as it lies in, or is named by, a published folder."""

    task: AnnotationTask
    file_name: str
    """``images/<image_id>.jpg`` inside the folder, or the image's s3 uri."""
    sha256: str | None
    """Of the image's bytes, where they passed through our hands."""


def manifest_line(image: OfferedImage) -> dict[str, Any]:
    """The task with the place where the annotator's tool finds the image."""
    return {**image.task.model_dump(mode="json"), "uri": image.file_name, "sha256": image.sha256}


def to_coco(offered: Sequence[OfferedImage], classes: Sequence[str], *, preannotated: bool) -> dict[str, Any]:
    """A COCO document: with the teacher's boxes, or the skeleton without any."""
    boxes = [(n, p) for n, image in enumerate(offered, start=1) for p in image.task.predictions if preannotated]
    return {
        "info": {"description": "pre-drawn boxes, not looked at yet" if preannotated else "nothing drawn yet"},
        "images": [_coco_image(n, image) for n, image in enumerate(offered, start=1)],
        "annotations": [_coco_box(k, n, p, classes) for k, (n, p) in enumerate(boxes, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, start=1)],
    }


def _coco_image(number: int, image: OfferedImage) -> dict[str, Any]:
    task = image.task
    entry = {"id": number, "file_name": image.file_name, "width": task.width_px, "height": task.height_px}
    return {**entry, "image_id": task.image_id, "reviewed": False}


def _coco_box(number: int, image: int, box: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy_px
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        "id": number,
        "image_id": image,
        "category_id": list(classes).index(box.category) + 1,
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "score": round(box.score, 4),
    }


def to_yolo(task: AnnotationTask, classes: Sequence[str]) -> bytes:
    """One line a box: class index, and centre, width and height as fractions of the image."""
    lines = []
    for box in task.predictions:
        x1, y1, x2, y2 = box.xyxy_px
        sides = (x1 + x2) / 2 / task.width_px, (y1 + y2) / 2 / task.height_px, (x2 - x1) / task.width_px
        numbers = " ".join(f"{side:.{_DECIMALS}f}" for side in (*sides, (y2 - y1) / task.height_px))
        lines.append(f"{list(classes).index(box.category)} {numbers}\n")
    return "".join(lines).encode()


def to_yolo_data_yaml(classes: Sequence[str]) -> bytes:
    """``data.yaml``, which says what the class indices mean."""
    return yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True).encode()


def to_voc(image: OfferedImage) -> bytes:
    """Pascal VOC: corners 1-based and inclusive, so one is added to the upper left one."""
    task, root = image.task, ET.Element("annotation")
    ET.SubElement(root, "filename").text = PurePosixPath(image.file_name).name
    size = ET.SubElement(root, "size")
    for name, value in (("width", task.width_px), ("height", task.height_px), ("depth", 3)):
        ET.SubElement(size, name).text = str(value)
    for box in task.predictions:
        annotation = ET.SubElement(root, "object")
        ET.SubElement(annotation, "name").text = box.category
        corners = ET.SubElement(annotation, "bndbox")
        x1, y1, x2, y2 = box.xyxy_px
        for name, corner in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(corners, name).text = str(round(corner, 2))
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"
