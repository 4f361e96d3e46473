"""Read and write "CVAT for images 1.1": one XML file with an ``<image>`` for each image of a task, job or project.

CVAT lists every image of a task, whether it was opened or not: the file states no status. Boxes are turned about their
center. Masks, polygons and ellipses are read with their bounding box; points, lines, cuboids and skeletons are named.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import (
    NO_CORNERS,
    Corners,
    EntryProblem,
    ParsedBox,
    ParsedClass,
    ParsedDocument,
    ParsedImage,
    class_name_problem,
    near_equal_names,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import iterate_xml, shown, to_float, to_size
from tasks.data.formats.shapes import (
    ellipse_bounds,
    is_rectangle,
    is_upright,
    looks_like_fractions,
    point_bounds,
    rotated_bounds,
)
from tasks.data.formats.writing import number, plain_boxes, required_size, xml_text

_EXPECTED = "CVAT for images 1.1"
_SHAPES = ("box", "polygon", "mask", "ellipse", "points", "polyline", "cuboid", "skeleton")
_WITHOUT_BOX = ("tag", "points", "polyline", "cuboid", "skeleton")
"""Types of labels that can have no box."""


def parse_cvat(content: bytes, where: str) -> ParsedDocument:
    """Read an XML file.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no "CVAT for images" file.
    """
    reader = _Reader(where)
    depth = 0
    root: ET.Element | None = None
    for event, element in iterate_xml(content, where, _EXPECTED):
        depth += 1 if event == "start" else -1
        if event == "start":
            if root is None:
                root = element
                if element.tag != "annotations":
                    problem = f"the XML's root is <{element.tag[:40]}>, expected <annotations>"
                    raise UnsupportedFormatError(where, problem)
        elif depth == 1 and root is not None:
            reader.take(element)
            root.clear()  # a large file never stands in memory as a whole
    return reader.document()


class _Reader:
    """The parts of one file, as they come."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._images = ImageTableBuilder("shape[{}]")
        self._num_images = 0
        self._names: dict[str, None] = {}
        self._problems: list[EntryProblem] = []
        self._notes: list[EntryProblem] = []
        self._annotator: str | None = None

    def take(self, element: ET.Element) -> None:
        """Read one child of the root."""
        if element.tag == "meta":
            self._take_meta(element)
        elif element.tag == "image":
            image = _image(element, f"{self._where}: image[{self._num_images}]")
            self._num_images += 1
            self._names.update(dict.fromkeys(box.category for box in image.boxes if box.category is not None))
            self._images.add(image)
        elif element.tag == "track":
            problem = "the file holds tracks, as CVAT for video does, expected CVAT for images 1.1"
            raise UnsupportedFormatError(self._where, problem, "Export the task as 'CVAT for images 1.1'.")

    def _take_meta(self, meta: ET.Element) -> None:
        for label in meta.iter("label"):
            name, kind = (label.findtext("name") or "").strip(), (label.findtext("type") or "").strip()
            if label.find("name") is None or label.findtext("parent"):
                continue  # a part of a skeleton
            problem = class_name_problem(name)
            if problem:
                self._problems.append(EntryProblem(f"{self._where}: meta", problem))
            elif kind in _WITHOUT_BOX:
                note = f"the label {name!r} is of type {kind}, which has no boxes: it is no class"
                self._notes.append(EntryProblem(f"{self._where}: meta", note))
            else:
                self._names.setdefault(name, None)
        for assignee in meta.iter("assignee"):
            self._annotator = (assignee.findtext("username") or assignee.text or "").strip() or self._annotator

    def document(self) -> ParsedDocument:
        """Everything read."""
        return ParsedDocument(
            format="cvat",
            where=self._where,
            classes=tuple(ParsedClass(position, name) for position, name in enumerate(self._names)),
            images=self._images.build(),
            problems=tuple(self._problems),
            notes=tuple(self._notes),
            near_equal_names=near_equal_names(self._names),
            annotator=self._annotator,
        )


def _image(element: ET.Element, entry: str) -> ParsedImage:
    name = element.get("name") or ""
    width_px, height_px, size_problem = to_size(element.get("width"), element.get("height"))
    shapes = [child for child in element if child.tag in _SHAPES]
    problems = [size_problem] if size_problem else []
    if not name.strip():
        problems.append("the attribute name is missing, expected the image's name")
    subset = element.get("subset")
    return ParsedImage(
        name=name,
        entry=entry,
        boxes=tuple(_box(shape, f"shape[{position}]") for position, shape in enumerate(shapes)),
        alternative_names=(f"{subset}/{name}",) if subset and name else (),
        width_px=width_px,
        height_px=height_px,
        tags=tuple(tag.get("label", "") for tag in element.iter("tag")),
        task_id=element.get("task_id"),
        annotation_id=element.get("id"),
        problems=tuple(problems),
    )


def _box(shape: ET.Element, entry: str) -> ParsedBox:
    category = (shape.get("label") or "").strip()
    problem = class_name_problem(category)
    if problem:
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    found = _shape(shape, category, entry)
    return found if isinstance(found, ParsedBox) else ParsedBox(category, NO_CORNERS, entry=entry, problem=found)


def _shape(shape: ET.Element, category: str, entry: str) -> ParsedBox | str:
    """The box of a shape, or the problem with it."""
    if shape.tag == "polygon":
        return _polygon(shape, category, entry)
    keys = {
        "box": ("xtl", "ytl", "xbr", "ybr"),
        "mask": ("left", "top", "width", "height"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }.get(shape.tag)
    if keys is None:
        return f"the shape is <{shape.tag}>, expected a box"
    numbers = _numbers(shape, keys)
    angle = to_float(shape.get("rotation") or "0")
    if isinstance(numbers, str):
        return numbers
    if angle is None or not math.isfinite(angle):
        return f"the rotation of a <{shape.tag}> is {shown(shape.get('rotation'))}, expected degrees"
    if shape.tag == "mask":
        left, top, width, height = numbers
        return ParsedBox(category, (left, top, left + width, top + height), "rle", False, entry=entry)
    if shape.tag == "ellipse":
        return ParsedBox(category, ellipse_bounds(*numbers, angle), "ellipse", False, entry=entry)
    if looks_like_fractions(numbers):
        return f"the <box> is {shown(list(numbers))}, fractions of the image, expected pixels"
    bounds = rotated_bounds(numbers, angle)
    if is_upright(angle):
        return ParsedBox(category, bounds, entry=entry)
    return ParsedBox(category, bounds, "rotated", False, angle, entry=entry)


def _numbers(shape: ET.Element, keys: tuple[str, ...]) -> Corners | str:
    values = [to_float(shape.get(key)) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if value is None or not math.isfinite(value):
            return f"the attribute {key} of a <{shape.tag}> is {shown(shape.get(key))}, expected a number"
    first, second, third, fourth = (value or 0.0 for value in values)
    return first, second, third, fourth


def _polygon(shape: ET.Element, category: str, entry: str) -> ParsedBox | str:
    text = shape.get("points") or ""
    points = []
    for pair in filter(None, (part.strip() for part in text.split(";"))):
        numbers = [to_float(value) for value in pair.split(",")]
        if len(numbers) != 2 or any(value is None or not math.isfinite(value) for value in numbers):
            return f"a point of a <polygon> is {shown(pair)}, expected x,y"
        points.append((numbers[0] or 0.0, numbers[1] or 0.0))
    if len(points) < 3:
        return f"the <polygon> has {len(points)} points, expected 3 or more"
    if is_rectangle(points):
        return ParsedBox(category, point_bounds(points), has_stated_box=False, entry=entry)
    return ParsedBox(category, point_bounds(points), "polygon", False, entry=entry)


def write_cvat(document: ParsedDocument) -> bytes:
    """Write a document as "CVAT for images 1.1".

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, a box is of another shape than a box, or an image's
            size is unknown.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "size").text = str(len(document.images))
    ET.SubElement(task, "mode").text = "annotation"
    labels = ET.SubElement(task, "labels")
    for name in document.class_names:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = xml_text(name)
        ET.SubElement(label, "type").text = "rectangle"
    if document.annotator:
        ET.SubElement(ET.SubElement(task, "assignee"), "username").text = xml_text(document.annotator)
    known = {name: position for position, name in enumerate(document.class_names)}
    for position, image in enumerate(document.images):
        root.append(_image_element(position, image, known))
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _image_element(position: int, image: ParsedImage, known: Mapping[str, int]) -> ET.Element:
    width_px, height_px = required_size(image)
    attributes = {"id": position, "name": xml_text(image.name), "width": width_px, "height": height_px}
    element = ET.Element("image", {key: str(value) for key, value in attributes.items()})
    for box in plain_boxes(image, known):
        corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), (number(side, 4) for side in box.xyxy), strict=True))
        ET.SubElement(element, "box", {"label": xml_text(box.category), "source": "manual", **corners, "z_order": "0"})
    for tag in image.tags:
        ET.SubElement(element, "tag", {"label": xml_text(tag), "source": "manual"})
    return element
