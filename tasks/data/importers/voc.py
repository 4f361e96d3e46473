"""Parse Pascal VOC files that come back in the inbox."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from tasks.data.importers.boxes import BoxProblem

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


def parse_voc_document(content: bytes) -> VocDocument:
    """One XML file's content.

    Raises:
        XmlProblem: too long, malformed, with a DOCTYPE, or no ``<annotation>``.
    """
    if len(content) > _MAX_XML_BYTES:
        problem = f"the XML is {len(content)} bytes long, expected at most {_MAX_XML_BYTES}"
        raise XmlProblem(problem)
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
