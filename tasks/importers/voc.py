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

from tasks.contracts import Box
from tasks.errors import UserError
from tasks.images import ImageFacts, ImageProblem
from tasks.importers.boxes import BoxProblem, checked_box, checked_class_name
from tasks.importers.folder import ImageSource, image_source
from tasks.importers.records import Findings, ImageRecord, Imported, imported
from tasks.progress import track

_MAX_XML_BYTES = 16 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class XmlProblem(ValueError):
    """Why an XML file cannot be used."""


@dataclass(frozen=True)
class Sheet:
    """What one XML file says, unchecked."""

    file_name: str
    size: tuple[str, str]
    objects: tuple[ET.Element, ...]
    root: ET.Element


class _NoDoctype(ET.TreeBuilder):
    """Refuses the one construct that entities (expansion bombs, files read in) need; VOC files have none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise XmlProblem("the XML declares a DOCTYPE, expected none")


def read_voc(annotations: Path, images: Path | ImageSource, *, max_pixels: int) -> Imported:
    """Read a folder of Pascal VOC annotations.

    Args:
        annotations: folder with one XML file per image.
        images: the image files.
        max_pixels: images with more pixels are set aside undecoded.

    Raises:
        UserError: no such folder, no XML in it, or none of the images can be used.
    """
    folder = image_source(images, max_pixels=max_pixels)
    if not annotations.is_dir():
        problem = "the annotations are not a folder, expected a folder of Pascal VOC XML files"
        raise UserError(annotations, problem, "Check --annotations and --format.")
    sheets = sorted(annotations.glob("*.xml"))
    if not sheets:
        problem = "XML files in the folder are 0, expected one per image"
        raise UserError(annotations, problem, "Check --annotations and --format.")
    findings = Findings()
    by_stem = _by_stem(folder)
    found = [
        r for s in track(sheets, "reading images", total=len(sheets)) for r in _record(s, folder, by_stem, findings)
    ]
    _refuse_shared(found, findings)
    return imported(annotations, found, findings)


def _by_stem(folder: ImageSource) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in folder.names():
        by_stem[PurePath(name).stem].append(name)
    return by_stem


def _record(
    sheet: Path, folder: ImageSource, by_stem: dict[str, list[str]], findings: Findings
) -> Iterator[ImageRecord]:
    """The image of one XML file: one record, or none and an entry in ``findings``."""
    try:
        content = _parse(sheet)
        file_name = _image_name(sheet, content, by_stem, findings)
    except (XmlProblem, ImageProblem) as problem:
        # The image the broken file most likely means must not come in as one that was never annotated.
        findings.refused.update(by_stem.get(sheet.stem, []))
        findings.refuse(sheet.name, str(problem))
        return
    try:
        path, facts = folder.inspect(file_name)
        _check_size(content, facts)
        yield ImageRecord(file_name, path, facts, _boxes(content, file_name, facts, findings))
    except (XmlProblem, ImageProblem, BoxProblem) as problem:
        findings.refuse_image(file_name, str(problem))


def _parse(sheet: Path) -> Sheet:
    try:
        if sheet.stat().st_size > _MAX_XML_BYTES:
            raise _too_long(sheet.stat().st_size)
        content = sheet.read_bytes()
    except OSError as error:
        raise XmlProblem(f"the XML is malformed ({error}), expected Pascal VOC") from None
    return parse_sheet(content)


def _too_long(length: int) -> XmlProblem:
    return XmlProblem(f"the XML is {length} bytes long, expected at most {_MAX_XML_BYTES}")


def parse_sheet(content: bytes) -> Sheet:
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
    return Sheet((root.findtext("filename") or "").strip(), size, tuple(root.findall("object")), root)


def _image_name(sheet: Path, content: Sheet, by_stem: dict[str, list[str]], findings: Findings) -> str:
    candidates = by_stem.get(sheet.stem, [])
    if not candidates:
        return content.file_name or f"{sheet.stem}.jpg"
    if content.file_name in candidates:
        return content.file_name
    if len(candidates) > 1:
        raise ImageProblem(f"the images of that name are {candidates[:5]}, expected one")
    if PurePath(content.file_name).stem != sheet.stem:
        findings.note(
            sheet.name,
            f"<filename> is {content.file_name[:100]!r}, used {candidates[0]!r} as the XML is called",
        )
    return candidates[0]


def _check_size(content: Sheet, facts: ImageFacts) -> None:
    """Zeros and blanks are what tools write that do not know the size; the boxes are checked all the same."""
    if all(text in ("", "0") for text in content.size):
        return
    if content.size != (str(facts.width_px), str(facts.height_px)):
        stated = " x ".join(text[:20] for text in content.size)
        found = f"{facts.width_px} x {facts.height_px} px, as in the file"
        raise ImageProblem(f"the annotated image size is {stated} px, expected {found}")


def _boxes(content: Sheet, file_name: str, facts: ImageFacts, findings: Findings) -> tuple[Box, ...]:
    boxes: list[Box] = []
    clipped = 0
    for element in content.objects:
        category = checked_class_name(element.findtext("name") or "")
        corners = voc_corners(element, category)
        box, was_clipped = checked_box(category, corners, facts.width_px, facts.height_px)
        boxes.append(box)
        clipped += was_clipped
    findings.note_clipped(file_name, clipped)
    return tuple(boxes)


def voc_corners(element: ET.Element, category: str) -> tuple[float, float, float, float]:
    """Corners of an ``<object>`` in 0-based continuous coordinates; the module's docstring says how.

    Raises:
        XmlProblem: a corner is no number.
        BoxProblem: no area.
    """
    xmin, ymin, xmax, ymax = (_corner(element, key) for key in _CORNERS)
    if xmax <= xmin or ymax <= ymin:
        shown = f"[{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}]"
        expected = "expected xmin < xmax and ymin < ymax"
        raise BoxProblem(f"a box of {category} has no area: xmin, ymin, xmax, ymax is {shown}, {expected}")
    return xmin - 1, ymin - 1, xmax, ymax


def _corner(element: ET.Element, key: str) -> float:
    text = element.findtext(f"bndbox/{key}")
    try:
        return float(text or "")
    except ValueError:
        raise XmlProblem(f"<{key}> of an object is {(text or '')[:40]!r}, expected a number") from None


def _refuse_shared(records: list[ImageRecord], findings: Findings) -> None:
    """Two XML files of one image contradict each other as a rule, and nobody can say which is right."""
    seen: set[str] = set()
    for record in records:
        if record.file_name in seen:
            findings.refuse_image(record.file_name, "the image has several XML files, expected one")
        seen.add(record.file_name)
