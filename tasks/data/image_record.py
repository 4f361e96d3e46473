"""Define an image of an import with its boxes, which stay in the columns of the document they came in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tasks.data.box_rules import BoxResult
from tasks.data.image_listing import ImageListing
from tasks.data.images import ImageMetadata
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import Box


class BoxFate(IntEnum):
    """What became of a box that was read. The first seven are those of ``box_rules.BoxResult``."""

    KEPT = BoxResult.KEPT
    CLIPPED = BoxResult.CLIPPED
    NOT_FINITE = BoxResult.NOT_FINITE
    NO_AREA = BoxResult.NO_AREA
    OUTSIDE = BoxResult.OUTSIDE
    TOO_SMALL = BoxResult.TOO_SMALL
    DUPLICATE = BoxResult.DUPLICATE
    UNREADABLE = 7
    ROTATED = 8
    OTHER_SHAPE = 9
    CROWD = 10
    STRAY = 11
    IMAGE_NOT_FOUND = 12
    IMAGE_SET_ASIDE = 13
    LISTED_AGAIN = 14
    IMAGE_DUPLICATE = 15

    @property
    def words(self) -> str:
        """The fate in words, for the accounts."""
        return _FATE_WORDS[self]

    @property
    def is_used(self) -> bool:
        """Whether the box gets into the campaign, as an object or as a crowd region."""
        return self in (BoxFate.KEPT, BoxFate.CLIPPED, BoxFate.CROWD)

    @property
    def sets_image_aside(self) -> bool:
        """Whether the image cannot be used without the box: training would take the object for background."""
        return self in _SETS_ASIDE


_FATE_WORDS = {
    BoxFate.KEPT: "kept",
    BoxFate.CLIPPED: "clipped",
    BoxFate.NOT_FINITE: "not finite",
    BoxFate.NO_AREA: "no area",
    BoxFate.OUTSIDE: "outside the image",
    BoxFate.TOO_SMALL: "too small",
    BoxFate.DUPLICATE: "drawn twice",
    BoxFate.UNREADABLE: "unreadable",
    BoxFate.ROTATED: "rotated",
    BoxFate.OTHER_SHAPE: "polygon or mask without a box",
    BoxFate.CROWD: "crowd or ignored regions",
    BoxFate.STRAY: "of an image that is not listed",
    BoxFate.IMAGE_NOT_FOUND: "image not found",
    BoxFate.IMAGE_SET_ASIDE: "image set aside",
    BoxFate.LISTED_AGAIN: "image listed again",
    BoxFate.IMAGE_DUPLICATE: "image is a duplicate",
}
_SETS_ASIDE = frozenset(
    {
        BoxFate.NOT_FINITE,
        BoxFate.NO_AREA,
        BoxFate.OUTSIDE,
        BoxFate.TOO_SMALL,
        BoxFate.UNREADABLE,
        BoxFate.ROTATED,
        BoxFate.OTHER_SHAPE,
    }
)


@dataclass(frozen=True, eq=False)
class BoxColumns:
    """All boxes of a document after the checks. Arrays have N rows, those of one image next to each other."""

    xyxy_N4: NDArray[np.float64]
    """In pixels, clipped."""
    category_N: NDArray[np.int32]
    """Index into ``categories``."""
    fate_N: NDArray[np.int8]
    """Values of ``BoxFate``; changed while the import goes on."""
    categories: tuple[str, ...]

    def counts(self) -> dict[BoxFate, int]:
        """Count the boxes by fate."""
        numbers = np.bincount(self.fate_N, minlength=len(BoxFate)).tolist()
        return {fate: numbers[fate] for fate in BoxFate}


class BoxRows(Sequence[Box]):
    """The used boxes of one image, which become objects only when they are looked at."""

    __slots__ = ("columns", "crowd_rows", "rows", "start", "stop")

    def __init__(self, columns: BoxColumns, start: int, stop: int) -> None:
        """Refer to the used ones of the rows from ``start`` to before ``stop``."""
        self.columns, self.start, self.stop = columns, start, stop
        fates = columns.fate_N[start:stop]
        used = fates <= BoxFate.CLIPPED
        self.rows: slice | NDArray[np.int64] = slice(start, stop) if used.all() else start + np.flatnonzero(used)
        self.crowd_rows: NDArray[np.int64] | None = None
        """Rows of crowd regions, which are not among ``rows``; None: there is none."""
        if not isinstance(self.rows, slice) and (is_crowd := fates == BoxFate.CROWD).any():
            self.crowd_rows = start + np.flatnonzero(is_crowd)

    def __len__(self) -> int:
        return self.stop - self.start if isinstance(self.rows, slice) else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Box: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Box, ...]: ...

    def __getitem__(self, index: int | slice) -> Box | tuple[Box, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Box]:
        yield from self._boxes_at(self.rows)

    def _boxes_at(self, rows: slice | NDArray[np.int64]) -> Iterator[Box]:
        corners, numbers = self.columns.xyxy_N4[rows].tolist(), self.columns.category_N[rows].tolist()
        for (x1, y1, x2, y2), category in zip(corners, numbers, strict=True):
            yield Box(category=self.columns.categories[category], xyxy_px=(x1, y1, x2, y2))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def refuse(self, fate: BoxFate) -> None:
        """Note that the boxes and crowd regions are not used after all."""
        self.columns.fate_N[self.rows] = fate
        if self.crowd_rows is not None:
            self.columns.fate_N[self.crowd_rows] = fate

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a box nor a crowd region."""
        return not len(self) and self.crowd_rows is None

    def crowd_regions(self) -> tuple[Box, ...]:
        """Return the regions of several objects, which are no boxes."""
        return () if self.crowd_rows is None else tuple(self._boxes_at(self.crowd_rows))

    def with_crowd_regions(self) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.bool_]]:
        """Return corners (N, 4), class numbers (N,) and crowd marks (N,) of the boxes and of the crowd regions."""
        if self.crowd_rows is None:
            return self.corners(), self.class_numbers(), np.zeros(len(self), dtype=bool)
        rows = np.concatenate([np.asarray(self.rows), self.crowd_rows])
        is_crowd = np.arange(len(rows)) >= len(self)
        return self.columns.xyxy_N4[rows], self.columns.category_N[rows], is_crowd

    def corners(self) -> NDArray[np.float64]:
        """Return x1, y1, x2, y2 of each box in pixels, shape (N, 4)."""
        return self.columns.xyxy_N4[self.rows]

    def class_numbers(self) -> NDArray[np.int32]:
        """Return the class of each box as index into ``columns.categories``."""
        return self.columns.category_N[self.rows]


NO_BOXES = BoxRows(
    BoxColumns(np.empty((0, 4)), np.empty(0, np.int32), np.empty(0, np.int8), ()),
    0,
    0,
)


@dataclass(frozen=True)
class ImageRecord:
    """One decoded image file and what the user's annotations say about it."""

    file_name: str
    """The user's own name of the image: its path in the listing."""
    listing: ImageListing
    """Where its bytes are."""
    metadata: ImageMetadata
    boxes: BoxRows | None
    """None: not reviewed yet. Empty: reviewed, and no object was found."""

    @property
    def image_id(self) -> str:
        """Identity of the image: the first 16 hex digits of its SHA-256."""
        return image_id_from_sha256(self.metadata.sha256)

    @property
    def uri(self) -> str | None:
        """The s3:// URI of an image that stays where it is."""
        return self.listing.uri_of(self.file_name)
