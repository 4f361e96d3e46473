"""Pascal VOC: one XML file per image.

Corners in VOC are 1-based pixels and inclusive, so a box becomes x1 = xmin - 1, y1 = ymin - 1, x2 = xmax,
y2 = ymax in the 0-based continuous coordinates used everywhere else. Files written 0-based then lie one
pixel outside at most, and are clipped. Strictly, xmin = xmax is one pixel wide; in practice it is a slip of
the mouse, and counts as a box without area.

The XML's own name says which image it means (image lists use it too); ``<filename>`` is often left over from
a renaming and is used only if there is no such image. ``difficult`` and ``truncated`` objects are objects.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from tasks.data.images import ImageMetadata, ImageProblem
from tasks.data.importers.boxes import BoxProblem, validate_box, validate_class_name
from tasks.data.importers.folder import ImageResolver, image_resolver
from tasks.data.importers.import_report import ImageRecord, ImportReport, ImportResult, finish_import
from tasks.data.schemas import Box
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track

_MAX_XML_BYTES = 16 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class XmlProblem(ValueError):
    """Why an XML file cannot be used."""


@dataclass(frozen=True)
class VocDocument:
    """What one XML file says, unchecked."""

    file_name: str
    size: tuple[str, str]
    objects: tuple[ET.Element, ...]
    root: ET.Element


class _NoDoctype(ET.TreeBuilder):
    """Refuses the one construct that entities (expansion bombs, files read in) need; VOC files have none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise XmlProblem("the XML declares a DOCTYPE, expected none")


def read_voc(annotations: Path, images: Path | ImageResolver, *, max_pixels: int) -> ImportResult:
    """Read a folder of Pascal VOC annotations.

    Args:
        annotations: folder with one XML file per image.
        images: the image files.
        max_pixels: images with more pixels are set aside undecoded.

    Raises:
        UserError: no such folder, no XML in it, or none of the images can be used.
    """
    resolver = image_resolver(images, max_pixels=max_pixels)
    if not annotations.is_dir():
        problem = "the annotations are not a folder, expected a folder of Pascal VOC XML files"
        raise UserError(annotations, problem, "Check --annotations and --format.")
    xml_paths = sorted(annotations.glob("*.xml"))
    if not xml_paths:
        problem = "XML files in the folder are 0, expected one per image"
        raise UserError(annotations, problem, "Check --annotations and --format.")
    report = ImportReport()
    by_stem = _names_by_stem(resolver)
    records = [
        r
        for s in track(xml_paths, "reading images", total=len(xml_paths))
        for r in _record(s, resolver, by_stem, report)
    ]
    _reject_shared_images(records, report)
    return finish_import(annotations, records, report)


def _names_by_stem(resolver: ImageResolver) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in resolver.names():
        by_stem[PurePath(name).stem].append(name)
    return by_stem


def _record(
    xml_path: Path, resolver: ImageResolver, by_stem: dict[str, list[str]], report: ImportReport
) -> Iterator[ImageRecord]:
    """The image of one XML file: one record, or none and an entry in ``report``."""
    try:
        document = _parse(xml_path)
        file_name = _image_name(xml_path, document, by_stem, report)
    except (XmlProblem, ImageProblem) as problem:
        # The image the broken file most likely means must not come in as one that was never annotated.
        report.rejected_images.update(by_stem.get(xml_path.stem, []))
        report.reject(xml_path.name, str(problem))
        return
    try:
        path, metadata = resolver.inspect(file_name)
        _check_size(document, metadata)
        yield ImageRecord(file_name, path, metadata, _boxes(document, file_name, metadata, report))
    except (XmlProblem, ImageProblem, BoxProblem) as problem:
        report.reject_image(file_name, str(problem))


def _parse(xml_path: Path) -> VocDocument:
    try:
        if xml_path.stat().st_size > _MAX_XML_BYTES:
            raise _too_long(xml_path.stat().st_size)
        content = xml_path.read_bytes()
    except OSError as error:
        raise XmlProblem(f"the XML is malformed ({error}), expected Pascal VOC") from None
    return parse_voc_document(content)


def _too_long(length: int) -> XmlProblem:
    return XmlProblem(f"the XML is {length} bytes long, expected at most {_MAX_XML_BYTES}")


def parse_voc_document(content: bytes) -> VocDocument:
    """One XML file's content.

    Raises:
        XmlProblem: too long, malformed, with a DOCTYPE, or no ``<annotation>``.
    """
    if len(content) > _MAX_XML_BYTES:
        raise _too_long(len(content))
    try:
        root = ET.fromstring(content, parser=ET.XMLParser(target=_NoDoctype()))
    except XmlProblem:
        raise
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise XmlProblem(f"the XML is malformed ({error}), expected Pascal VOC") from None
    if root.tag != "annotation":
        raise XmlProblem(f"the XML's root is <{root.tag[:40]}>, expected <annotation>")
    size = ((root.findtext("size/width") or "").strip(), (root.findtext("size/height") or "").strip())
    return VocDocument((root.findtext("filename") or "").strip(), size, tuple(root.findall("object")), root)


def _image_name(xml_path: Path, document: VocDocument, by_stem: dict[str, list[str]], report: ImportReport) -> str:
    candidates = by_stem.get(xml_path.stem, [])
    if not candidates:
        return document.file_name or f"{xml_path.stem}.jpg"
    if document.file_name in candidates:
        return document.file_name
    if len(candidates) > 1:
        raise ImageProblem(f"the images of that name are {candidates[:5]}, expected one")
    if PurePath(document.file_name).stem != xml_path.stem:
        report.note(
            xml_path.name,
            f"<filename> is {document.file_name[:100]!r}, used {candidates[0]!r} as the XML is called",
        )
    return candidates[0]


def _check_size(document: VocDocument, metadata: ImageMetadata) -> None:
    """Zeros and blanks are what tools write that do not know the size; the boxes are checked all the same."""
    if all(text in ("", "0") for text in document.size):
        return
    if document.size != (str(metadata.width_px), str(metadata.height_px)):
        annotated_size = " x ".join(text[:20] for text in document.size)
        found = f"{metadata.width_px} x {metadata.height_px} px, as in the file"
        raise ImageProblem(f"the annotated image size is {annotated_size} px, expected {found}")


def _boxes(document: VocDocument, file_name: str, metadata: ImageMetadata, report: ImportReport) -> tuple[Box, ...]:
    boxes: list[Box] = []
    clipped = 0
    for element in document.objects:
        category = validate_class_name(element.findtext("name") or "")
        corners = voc_corners(element, category)
        box, was_clipped = validate_box(category, corners, metadata.width_px, metadata.height_px)
        boxes.append(box)
        clipped += was_clipped
    report.note_clipped(file_name, clipped)
    return tuple(boxes)


def voc_corners(element: ET.Element, category: str) -> tuple[float, float, float, float]:
    """Corners of an ``<object>`` in 0-based continuous coordinates; the module's docstring says how.

    Raises:
        XmlProblem: a corner is no number.
        BoxProblem: no area.
    """
    xmin, ymin, xmax, ymax = (_corner(element, key) for key in _CORNERS)
    if xmax <= xmin or ymax <= ymin:
        formatted = f"[{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}]"
        expected = "expected xmin < xmax and ymin < ymax"
        raise BoxProblem(f"a box of {category} has no area: xmin, ymin, xmax, ymax is {formatted}, {expected}")
    return xmin - 1, ymin - 1, xmax, ymax


def _corner(element: ET.Element, key: str) -> float:
    text = element.findtext(f"bndbox/{key}")
    try:
        return float(text or "")
    except ValueError:
        raise XmlProblem(f"<{key}> of an object is {(text or '')[:40]!r}, expected a number") from None


def _reject_shared_images(records: list[ImageRecord], report: ImportReport) -> None:
    """Two XML files of one image contradict each other as a rule, and nobody can say which is right."""
    seen: set[str] = set()
    for record in records:
        if record.file_name in seen:
            report.reject_image(record.file_name, "the image has several XML files, expected one")
        seen.add(record.file_name)
