"""Read and write Pascal VOC: one XML file per image.

Corners in VOC are 1-based pixels and inclusive, so a box becomes x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax in
the 0-based continuous coordinates used everywhere else. A file with xmin = xmax has a box without area.

The XML's own path is the image's name; ``<filename>``, often left over from a renaming, is an alternative name. Besides
the usual elements a file may hold ``<status>``, ``<annotator>``, ``<finished_at>`` and ``<seconds_spent>``;
``verified="yes"``, as labelImg writes it, is a person's statement that the image is finished.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import (
    NO_CORNERS,
    STATUSES,
    Corners,
    ParsedBox,
    ParsedDocument,
    ParsedImage,
    Status,
    class_name_problem,
    near_equal_names,
    numbered_classes,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import decode_text, parse_xml, shown, to_flag, to_float, to_size
from tasks.data.formats.shapes import (
    is_rectangle,
    is_upright,
    looks_like_fractions,
    point_bounds,
    rotated_bounds,
)
from tasks.data.formats.writing import number, plain_boxes, required_size, xml_text

_EXPECTED = "Pascal VOC"
_MAX_XML_BYTES = 16 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_BACKGROUND = "background"


def parse_voc(content: bytes, file_name: str) -> ParsedImage:
    """Read one XML file.

    Args:
        content: of the file.
        file_name: its path, which says which image is meant.

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no Pascal VOC file.
    """
    if len(content) > _MAX_XML_BYTES:
        problem = f"the XML is {len(content)} bytes long, expected at most {_MAX_XML_BYTES}"
        raise UnsupportedFormatError(file_name, problem)
    root = parse_xml(content, file_name, _EXPECTED)
    if root.tag != "annotation":
        raise UnsupportedFormatError(file_name, f"the XML's root is <{root.tag[:40]}>, expected <annotation>")
    width_px, height_px, size_problem = to_size(root.findtext("size/width"), root.findtext("size/height"))
    boxes = tuple(_box(element, position) for position, element in enumerate(root.findall("object")))
    status, status_problem = _status(root, bool(boxes))
    return ParsedImage(
        name=file_name,
        entry=file_name,
        boxes=boxes,
        alternative_names=tuple(_other_names(root)),
        width_px=width_px,
        height_px=height_px,
        status=status,
        annotator=_text(root, "annotator"),
        finished_at=_text(root, "finished_at"),
        seconds_spent=to_float(_text(root, "seconds_spent")),
        problems=tuple(problem for problem in (size_problem, status_problem) if problem),
    )


def parse_voc_files(files: Iterable[tuple[str, bytes]], where: str, *, labelmap: bytes | None = None) -> ParsedDocument:
    """Read a folder of XML files; one that cannot be read becomes an image with a problem.

    Args:
        files: path and content of each.
        where: name of the folder, for messages.
        labelmap: content of CVAT's ``labelmap.txt``, which lists classes without boxes too.
    """
    images = ImageTableBuilder("object[{}]")
    listed = [] if labelmap is None else labelmap_names(labelmap)
    written: dict[str, None] = dict.fromkeys(listed)
    for file_name, content in files:
        try:
            image = parse_voc(content, file_name)
        except (TruncatedFileError, UnsupportedFormatError) as error:
            image = ParsedImage(file_name, file_name, problems=(error.problem,))
        written.update(dict.fromkeys(box.category for box in image.boxes if box.category is not None))
        images.add(image)
    return ParsedDocument(
        format="voc",
        where=where,
        classes=numbered_classes(written),
        images=images.build(),
        near_equal_names=near_equal_names(written),
    )


def labelmap_names(content: bytes) -> list[str]:
    """Read the class names of CVAT's ``labelmap.txt``; its background, which is no class, is left out."""
    lines = [line.strip() for line in decode_text(content)[0].splitlines()]
    names = [line.rsplit(":", 3)[0].strip() for line in lines if line and not line.startswith("#")]
    return [name for name in names if name != _BACKGROUND and class_name_problem(name) is None]


def _other_names(root: ET.Element) -> Iterator[str]:
    folder, name = _text(root, "folder"), _text(root, "filename")
    if name:
        yield name
        if folder and "/" not in name:
            yield f"{folder}/{name}"
    path = _text(root, "path")
    if path:
        yield path


def _box(element: ET.Element, position: int) -> ParsedBox:
    entry, category = f"object[{position}]", (element.findtext("name") or "").strip()
    problem = class_name_problem(category)
    if problem:
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    is_ignored = bool(to_flag(_text(element, "difficult")))
    found = _shape(element, entry, category, is_ignored)
    if isinstance(found, str):
        return ParsedBox(category, NO_CORNERS, entry=entry, problem=found)
    return found


def _shape(element: ET.Element, entry: str, category: str, is_ignored: bool) -> ParsedBox | str:
    """The box of an object, or the problem with it."""
    turned = element.find("robndbox")  # roLabelImg: center, sides, angle in radians
    if turned is not None:
        numbers = [to_float(turned.findtext(key)) for key in ("cx", "cy", "w", "h", "angle")]
        cx, cy, width, height, angle = (math.nan if value is None else value for value in numbers)
        if not all(map(math.isfinite, (cx, cy, width, height, angle))):
            return "the <robndbox> is incomplete, expected cx, cy, w, h and angle"
        corners = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        return _turned(corners, math.degrees(angle), entry, category, is_ignored)
    points = _polygon(element)
    if isinstance(points, str):
        return points
    stated = _corners(element)
    if points and not is_rectangle(points, tolerance=1.0):
        corners = stated if isinstance(stated, tuple) else point_bounds(points)
        is_stated = isinstance(stated, tuple)
        return ParsedBox(category, corners, "polygon", is_stated, is_ignored=is_ignored, entry=entry)
    if isinstance(stated, str):
        if not points or element.find("bndbox") is not None:
            return stated
        stated = point_bounds(points)
    angle_text = next((a.findtext("value") for a in element.iter("attribute") if _text(a, "name") == "rotation"), None)
    angle_or_none = to_float(angle_text) if angle_text and angle_text.strip() else 0.0
    if angle_or_none is None or not math.isfinite(angle_or_none):
        return f"the attribute rotation is {shown(angle_text)}, expected degrees"
    return _turned(stated, angle_or_none, entry, category, is_ignored)


def _turned(corners: Corners, angle: float, entry: str, category: str, is_ignored: bool) -> ParsedBox:
    if is_upright(angle):
        return ParsedBox(category, rotated_bounds(corners, angle), is_ignored=is_ignored, entry=entry)
    bounds = rotated_bounds(corners, angle)
    return ParsedBox(category, bounds, "rotated", False, angle, is_ignored=is_ignored, entry=entry)


def _polygon(element: ET.Element) -> list[tuple[float, float]] | str:
    """Points of ``<polygon>``, as ``<pt><x/><y/></pt>`` or ``<x1/><y1/><x2/>...``; empty: there is none."""
    outline = element.find("polygon")
    if outline is None:
        return []
    values = [(point.findtext("x"), point.findtext("y")) for point in outline.findall("pt")]
    if not values:
        texts = {child.tag: child.text for child in outline}
        values = [(texts[f"x{n}"], texts.get(f"y{n}")) for n in range(1, len(texts) + 1) if f"x{n}" in texts]
    numbers = [(to_float(x), to_float(y)) for x, y in values]
    points = [(x, y) for x, y in numbers if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    if len(points) < max(len(numbers), 3):
        return f"the <polygon> has {len(points)} readable points of {len(numbers)}, expected 3 or more"
    return points


def _corners(element: ET.Element) -> Corners | str:
    texts = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    numbers = [to_float(text) for text in texts]
    for side, text, value in zip(_SIDES, texts, numbers, strict=True):
        if value is None:
            return f"<{side}> is {shown(text)}, expected a number"
    xmin, ymin, xmax, ymax = (value or 0.0 for value in numbers)
    if looks_like_fractions((xmin, ymin, xmax, ymax)):
        return f"the <bndbox> is {shown(texts)}, fractions of the image, expected pixels"
    if xmax <= xmin or ymax <= ymin:
        return f"the <bndbox> is {shown(texts)}, expected xmin < xmax and ymin < ymax"
    return xmin - 1, ymin - 1, xmax, ymax


def _status(root: ET.Element, has_boxes: bool) -> tuple[Status | None, str | None]:
    stated = _text(root, "status")
    if stated is not None:
        known = next((status for status in STATUSES if status == stated), None)
        return known, None if known else f"status is {shown(stated)}, expected one of {', '.join(STATUSES)}"
    if (root.get("verified") or "").strip().lower() in ("yes", "true", "1"):
        return ("labeled" if has_boxes else "empty"), None
    return None, None


def _text(element: ET.Element, tag: str) -> str | None:
    return (element.findtext(tag) or "").strip() or None


def write_voc(document: ParsedDocument) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of an XML file for each image.

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, or a box is of another shape than a box.
    """
    id_of = {name: position for position, name in enumerate(document.class_names)}
    for image in document.images:
        root = ET.Element("annotation")
        if image.status:
            ET.SubElement(root, "status").text = image.status
        ET.SubElement(root, "filename").text = xml_text(PurePosixPath(image.name).name)
        size = ET.SubElement(root, "size")
        for tag, value in zip(("width", "height", "depth"), (*required_size(image), 3), strict=True):
            ET.SubElement(size, tag).text = str(value)
        for tag in ("annotator", "finished_at", "seconds_spent"):
            value = getattr(image, tag)
            if value is not None:
                ET.SubElement(root, tag).text = xml_text(value)
        for box in plain_boxes(image, id_of):
            _write_box(root, box)
        ET.indent(root)
        content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
        yield PurePosixPath(image.name).with_suffix(".xml").as_posix(), content + b"\n"


def _write_box(root: ET.Element, box: ParsedBox) -> None:
    drawn = ET.SubElement(root, "object")
    ET.SubElement(drawn, "name").text = xml_text(box.category)
    ET.SubElement(drawn, "difficult").text = str(int(box.is_ignored))
    corners = ET.SubElement(drawn, "bndbox")
    x1, y1, x2, y2 = box.xyxy
    for tag, value in zip(_SIDES, (x1 + 1, y1 + 1, x2, y2), strict=True):
        ET.SubElement(corners, tag).text = number(value, 4)
