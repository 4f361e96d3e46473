"""Check and format what the writers have in common."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import ParsedBox, ParsedImage
from tasks.data.formats.decoding import shown

_NOT_XML = re.compile("[\\x00-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")


def plain_boxes(image: ParsedImage, classes: Mapping[str, int], *, allow_crowd: bool = False) -> Iterator[ParsedBox]:
    """Yield the boxes of an image for a writer.

    Raises:
        UnsupportedFormatError: one has a problem, or is more than a box of a known class.
    """
    if image.problems:
        raise UnsupportedFormatError(image.entry or image.name, image.problems[0])
    for box in image.boxes:
        where = f"{image.entry or image.name}: {box.entry}"
        if box.problem:
            raise UnsupportedFormatError(where, box.problem)
        if box.kind != "box" or (box.is_crowd and not allow_crowd):
            kind = "crowd region" if box.is_crowd else box.kind
            raise UnsupportedFormatError(where, f"the shape is {kind}, expected box", "Convert it first.")
        if box.category not in classes:
            raise UnsupportedFormatError(where, f"the class is {shown(box.category)}, expected one of the document")
        yield box


def required_size(image: ParsedImage) -> tuple[int, int]:
    """Width and height of an image, for a format that cannot do without.

    Raises:
        UnsupportedFormatError: they are not known.
    """
    if not image.width_px or not image.height_px:
        problem = "the image size is unknown, expected width and height in pixels"
        raise UnsupportedFormatError(image.entry or image.name, problem)
    return image.width_px, image.height_px


def number(value: float, decimals: int = 6) -> str:
    """A number as text without needless zeros."""
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def xml_text(value: Any) -> str:
    """Text that XML can hold: control characters and lone surrogates replaced."""
    return _NOT_XML.sub("?", str(value))
