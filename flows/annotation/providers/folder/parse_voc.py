"""Pascal VOC that comes back: one XML file an image. One without objects says that nothing is there.

Besides the usual elements it may hold ``<annotator>``, ``<finished_at>``, ``<seconds_spent>`` and ``<status>``;
``verified="yes"``, as labelImg writes it, says that even untouched boxes are an answer.
"""

import xml.etree.ElementTree as ET
from pathlib import PurePosixPath
from typing import Any

from flows.annotation.providers.folder.parsed import (
    ParsedAnnotation,
    TruncatedFileError,
    UnsupportedFormatError,
    is_complete,
)
from tasks.data.importers.boxes import BoxProblem
from tasks.data.importers.voc import VocDocument, XmlProblem, parse_voc_document, voc_corners


def parse_voc(content: bytes, file_name: str) -> ParsedAnnotation:
    """Read one file; its own name comes before ``<filename>``, which is often left over from a renaming.

    Raises:
        CutOffError: it ends too early.
        NotUnderstoodError: it is no VOC sheet.
    """
    try:
        sheet = parse_voc_document(content)
    except XmlProblem as problem:
        if not is_complete(content, b">"):
            raise TruncatedFileError("the XML ends too early") from None
        if "no element found" in str(problem):  # cut off right behind a tag
            raise TruncatedFileError("the XML ends too early") from None
        raise UnsupportedFormatError(str(problem)) from None
    boxes, problem_text = _parse_boxes(sheet)
    return ParsedAnnotation(
        image=PurePosixPath(file_name).name,
        alternative_name=sheet.file_name or None,
        boxes=boxes,
        has_explicit_status=True,
        is_reviewed=sheet.root.get("verified") == "yes" or sheet.root.find("status") is not None,
        status=_element_text(sheet, "status"),
        annotator=_element_text(sheet, "annotator"),
        finished_at=_element_text(sheet, "finished_at"),
        seconds_spent=_number_or_text(_element_text(sheet, "seconds_spent")),
        size_px=_size_px(sheet),
        problem=problem_text,
    )


def _parse_boxes(sheet: VocDocument) -> tuple[tuple[dict[str, Any], ...], str | None]:
    boxes = []
    for element in sheet.objects:
        try:
            boxes.append(_parse_box(element))
        except (BoxProblem, XmlProblem) as problem:
            return (), str(problem)
    return tuple(boxes), None


def _parse_box(element: ET.Element) -> dict[str, Any]:
    category = (element.findtext("name") or "").strip()
    return {"category": category, "xyxy_px": list(voc_corners(element, category)), "rotation_deg": None}


def _size_px(sheet: VocDocument) -> tuple[int, int] | None:
    """Zeros and blanks are what tools write that do not know the size."""
    try:
        width, height = (int(text) for text in sheet.size)
    except ValueError:
        return None
    return (width, height) if width and height else None


def _element_text(sheet: VocDocument, tag: str) -> str | None:
    return (sheet.root.findtext(tag) or "").strip() or None


def _number_or_text(text: str | None) -> Any:
    """A number where it is one; otherwise the text, for the door to refuse."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
