"""Decide what an import takes: which boxes are used, and what an image that is listed without boxes means.

Readers only say what a document holds. Whatever is refused here is counted and named, never dropped in silence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.data.box_rules import BoxRules, CheckedBoxes, check_boxes
from tasks.data.formats.base import SHAPE_KINDS, ParsedDocument, ParsedImage
from tasks.data.formats.box_table import BROKEN, CROWD, IGNORED, STATED, BoxSlice, BoxTable
from tasks.data.image_record import BoxColumns, BoxFate
from tasks.data.images import ImageMetadata

_BOX, _ROTATED = SHAPE_KINDS.index("box"), SHAPE_KINDS.index("rotated")
_TURNED_ON_THE_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class ImportPolicy:
    """What the user says about annotations that can be understood in two ways."""

    polygons: Literal["refuse", "box"] = "refuse"
    """``box``: polygons, masks, ellipses and rotated boxes count as their bounding boxes. A box that a document
    states beside a polygon always counts."""
    unannotated: Literal["unlabeled", "empty"] = "unlabeled"
    """What an image means that is listed without boxes, where the document does not say that it was reviewed."""
    test_split: Literal["leave-out", "train", "val"] = "leave-out"
    """What becomes of the images of a split called test."""
    follow_links: bool = False
    """Whether links to images and folders are followed."""


@dataclass(frozen=True)
class CheckedDocument:
    """The boxes of a document with what became of each."""

    document: ParsedDocument
    table: BoxTable | None
    """None: there is no image."""
    columns: BoxColumns
    _row_of: NDArray[np.int64]
    """Row of ``_checked`` of each box; -1."""
    _checked: CheckedBoxes

    def span(self, position: int) -> tuple[int, int]:
        """First row of the boxes of an image, and the row after the last."""
        boxes = self.document.images[position].boxes
        assert isinstance(boxes, BoxSlice)
        return boxes.start, boxes.stop

    def has_refused_box(self) -> NDArray[np.bool_]:
        """For each image, whether one of its boxes makes it unusable."""
        refused = np.zeros(len(self.document.images), dtype=bool)
        if self.table is not None:
            codes = [fate for fate in BoxFate if fate.sets_image_aside]
            refused[self.table.image[np.isin(self.columns.fate_N, codes)]] = True
        return refused

    def refusals(self) -> Iterator[tuple[int, BoxFate, str]]:
        """Yield row, fate and reason of each box that is refused for what it is."""
        fates = self.columns.fate_N
        for row in np.flatnonzero((fates > BoxFate.CLIPPED) & (fates < BoxFate.CROWD)).tolist():
            yield row, BoxFate(int(fates[row])), self.message(row)

    def message(self, row: int) -> str:
        """Say why a box is refused: ``<what> is <value>, expected <allowed>``."""
        assert self.table is not None
        fate, box = BoxFate(int(self.columns.fate_N[row])), self.table.box(row)
        if fate == BoxFate.UNREADABLE:
            return box.problem or "the entry cannot be read"
        if fate == BoxFate.ROTATED:
            turned = f" by {box.rotation_deg:g} degrees" if box.rotation_deg else ""
            return f"a box of {box.category} is rotated{turned}, expected an upright box"
        if fate == BoxFate.OTHER_SHAPE:
            shape = {"rle": "mask"}.get(box.kind, box.kind)
            return f"the shape of a {box.category} is {shape}, without a box beside it, expected a box"
        return self._checked.message(int(self._row_of[row])) or fate.words


def check_document(
    document: ParsedDocument, sizes_M2: NDArray[np.float64], policy: ImportPolicy, rules: BoxRules
) -> CheckedDocument:
    """Check all boxes of a document at once.

    Args:
        document: with M images.
        sizes_M2: width and height in pixels of each image as displayed; NaN where it cannot be used.
        policy: what counts as a box.
        rules: limits of boxes.
    """
    table = _table_of(document.images)
    if table is None:
        empty = BoxColumns(np.empty((0, 4)), np.empty(0, np.int32), np.empty(0, np.int8), ())
        return CheckedDocument(document, None, empty, np.empty(0, np.int64), check_boxes([], [], [], []))
    fate_N = _first_fates(table, document, policy)
    size_N2 = sizes_M2[table.image]
    xyxy_N4 = table.xyxy
    is_fraction_M = np.fromiter((image.units == "fraction" for image in document.images), bool, len(document.images))
    if is_fraction_M.any():
        scale_N2 = np.where(is_fraction_M[table.image][:, None], size_N2, 1.0)
        xyxy_N4 = xyxy_N4 * np.tile(scale_N2, 2)
    is_region_N = fate_N == BoxFate.CROWD
    rows = np.flatnonzero(((fate_N == BoxFate.KEPT) | is_region_N) & np.isfinite(size_N2[:, 0]))
    # Regions count as classes of their own: an object that fills its region is no duplicate of it.
    category_N = table.category[rows] + len(table.categories) * is_region_N[rows]
    # Without a copy where every box is checked: one is made below, before anything is changed.
    is_whole = xyxy_N4 is table.xyxy and len(rows) == len(fate_N)
    checked = check_boxes(
        xyxy_N4 if is_whole else xyxy_N4[rows],
        category_N,
        size_N2[rows, 0],
        size_N2[rows, 1],
        rules,
        images=table.image[rows],
        names=(*table.categories, *table.categories),
    )
    fate_N[rows] = np.where(is_region_N[rows] & checked.kept_N, BoxFate.CROWD, checked.result_N)
    xyxy_N4 = xyxy_N4.copy() if xyxy_N4 is table.xyxy else xyxy_N4
    xyxy_N4[rows] = checked.xyxy_N4
    row_of = np.full(len(fate_N), -1, dtype=np.int64)
    row_of[rows] = np.arange(len(rows))
    columns = BoxColumns(xyxy_N4, table.category, fate_N, table.categories)
    return CheckedDocument(document, table, columns, row_of, checked)


def _table_of(images: Sequence[ParsedImage]) -> BoxTable | None:
    """The table that all readers put the boxes of a document in."""
    if not images:
        return None
    boxes = images[0].boxes
    assert isinstance(boxes, BoxSlice)
    return boxes.table


def _first_fates(table: BoxTable, document: ParsedDocument, policy: ImportPolicy) -> NDArray[np.int8]:
    """Fates that need no image.

    VOC's and DOTA's ``difficult`` objects are objects; what COCO (``ignore``) and VisDrone (``score`` 0) leave out is a
    region. Of a region's shape the bounding box is enough, whatever the policy: no object is learned from it.
    """
    fate_N = np.zeros(len(table.flags), dtype=np.int8)
    if policy.polygons == "refuse":
        fate_N[(table.kind != _BOX) & ((table.flags & STATED) == 0)] = BoxFate.OTHER_SHAPE
        fate_N[table.kind == _ROTATED] = BoxFate.ROTATED
    region = CROWD | IGNORED if document.format in ("coco", "visdrone") else CROWD
    fate_N[(table.flags & region) != 0] = BoxFate.CROWD
    fate_N[(table.flags & BROKEN) != 0] = BoxFate.UNREADABLE
    return fate_N


def num_converted(checked: CheckedDocument, start: int, stop: int) -> int:
    """Count the used boxes of an image that were taken from another shape."""
    table = checked.table
    if table is None:
        return 0
    derived = (table.kind[start:stop] != _BOX) & ((table.flags[start:stop] & STATED) == 0)
    return int(np.count_nonzero(derived & (checked.columns.fate_N[start:stop] <= BoxFate.CLIPPED)))


def size_problem(image: ParsedImage, metadata: ImageMetadata) -> tuple[str, bool] | None:
    """Compare the size that a document states with the picture's.

    Returns:
        The problem, and whether the boxes were drawn before the EXIF turn; None: there is no problem.
    """
    stated = (image.width_px or metadata.width_px, image.height_px or metadata.height_px)
    if stated == (metadata.width_px, metadata.height_px):
        return None
    problem = f"the annotated image size is {stated[0]} x {stated[1]} px, "
    found = f"{metadata.width_px} x {metadata.height_px} px"
    if stated[::-1] == (metadata.width_px, metadata.height_px) and metadata.exif_orientation in _TURNED_ON_THE_SIDE:
        cause = f"expected {found}, as the picture is shown: its boxes were drawn before the EXIF turn"
        return f"{problem}{cause}. Turn the pixels and remove the EXIF tag, or draw the boxes again", True
    return f"{problem}expected {found}, as in the file", False


def is_frame_unknown(image: ParsedImage, metadata: ImageMetadata) -> bool:
    """Whether sizes cannot tell if boxes were drawn before or after the picture's EXIF turn."""
    is_size_telling = metadata.exif_orientation in _TURNED_ON_THE_SIDE and metadata.width_px != metadata.height_px
    return metadata.exif_orientation != 1 and not (is_size_telling and image.width_px and image.height_px)
