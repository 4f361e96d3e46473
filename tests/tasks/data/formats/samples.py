"""Small documents that the tests of the readers share."""

from tasks.data.formats.base import ParsedBox, ParsedClass, ParsedDocument, ParsedImage

BOLT = ParsedBox("bolt", (10.25, 12.5, 40.75, 33.0))
NUT = ParsedBox("nut", (0.0, 0.0, 96.0, 72.0))


def document(*images: ParsedImage, classes: tuple[str, ...] = ("bolt", "nut", "crack")) -> ParsedDocument:
    listed = tuple(ParsedClass(number, name) for number, name in enumerate(classes, start=1))
    return ParsedDocument("coco", "sample", listed, images)


def image(name: str, *boxes: ParsedBox, **changes: object) -> ParsedImage:
    values = {"width_px": 96, "height_px": 72, **changes}
    return ParsedImage(name, name, boxes, **values)  # type: ignore[arg-type]


def shapes(one: ParsedImage) -> list[tuple[str | None, tuple[float, ...], str]]:
    """Class, rounded corners and kind of each box."""
    return [(box.category, tuple(round(side, 3) for side in box.xyxy), box.kind) for box in one.boxes]


def problems(one: ParsedImage) -> list[str]:
    return [*one.problems, *(box.problem for box in one.boxes if box.problem)]
