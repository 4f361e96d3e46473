"""Keep the boxes of a document in columns, so that a million of them fit and can be checked at once."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tasks.data.formats.base import NO_CORNERS, SHAPE_KINDS, Corners, ParsedBox, ParsedImage, ShapeKind

CROWD, IGNORED, STATED, BROKEN = 1, 2, 4, 8
"""Bits of the column ``flags``."""

_KIND_CODE = {kind: code for code, kind in enumerate(SHAPE_KINDS)}


@dataclass(frozen=True)
class BoxTable:
    """All boxes of a document, those of one image next to each other, in the order of the images."""

    categories: tuple[str, ...]
    """What ``category`` counts in; not the classes of the document."""
    xyxy: NDArray[np.float64]
    category: NDArray[np.int32]
    """Index into ``categories``; -1 where there is none."""
    image: NDArray[np.int64]
    """Index into ``ParsedDocument.images``."""
    kind: NDArray[np.int8]
    """Index into ``SHAPE_KINDS``."""
    flags: NDArray[np.uint8]
    position: NDArray[np.int64]
    """Where the box stands in its list."""
    entry_format: str
    """Turns ``position`` into ``ParsedBox.entry``."""
    rotations: dict[int, float]
    scores: dict[int, float]
    problems: dict[int, str]
    """Sparse columns, by row."""

    def box(self, row: int) -> ParsedBox:
        """One row as an object."""
        flags, category = int(self.flags[row]), int(self.category[row])
        x1, y1, x2, y2 = self.xyxy[row].tolist()
        return ParsedBox(
            category=self.categories[category] if category >= 0 else None,
            xyxy=(x1, y1, x2, y2),
            kind=SHAPE_KINDS[self.kind[row]],
            has_stated_box=bool(flags & STATED),
            rotation_deg=self.rotations.get(row, 0.0),
            is_crowd=bool(flags & CROWD),
            is_ignored=bool(flags & IGNORED),
            score=self.scores.get(row),
            entry=self.entry_format.format(int(self.position[row])),
            problem=self.problems.get(row),
        )


class BoxSlice(Sequence[ParsedBox]):
    """The boxes of one image: rows of a table that become objects only when they are looked at."""

    __slots__ = ("start", "stop", "table")

    def __init__(self, table: BoxTable, start: int, stop: int) -> None:
        """Refer to the rows from ``start`` to before ``stop``."""
        self.table, self.start, self.stop = table, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> ParsedBox: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ParsedBox, ...]: ...

    def __getitem__(self, index: int | slice) -> ParsedBox | tuple[ParsedBox, ...]:
        if isinstance(index, slice):
            return tuple(self.table.box(row) for row in range(self.start, self.stop)[index])
        return self.table.box(range(self.start, self.stop)[index])

    def __iter__(self) -> Iterator[ParsedBox]:
        return (self.table.box(row) for row in range(self.start, self.stop))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def broken(self) -> Iterator[ParsedBox]:
        """Yield the boxes with a problem."""
        problems = self.table.problems
        if problems:
            yield from (self.table.box(row) for row in range(self.start, self.stop) if row in problems)

    def tally(self) -> tuple[int, int, int, dict[ShapeKind, int]]:
        """Count all boxes, those with a problem, the crowd regions and the kinds of those without a problem."""
        flags = self.table.flags[self.start : self.stop]
        good = (flags & BROKEN) == 0
        kinds = np.bincount(self.table.kind[self.start : self.stop][good], minlength=len(SHAPE_KINDS)).tolist()
        crowd = int(np.count_nonzero(good & ((flags & CROWD) != 0)))
        by_kind = dict(zip(SHAPE_KINDS, kinds, strict=True))
        return len(self), len(self) - int(np.count_nonzero(good)), crowd, by_kind


class BoxTableBuilder:
    """Collect boxes in any order of images."""

    def __init__(self, entry_format: str) -> None:
        """Start empty; ``entry_format`` is what ``BoxTable.entry_format`` says."""
        self._entry_format = entry_format
        self._index_of: dict[str, int] = {}
        self._xyxy, self._position, self._image = array("d"), array("q"), array("q")
        self._category, self._kind, self._flags = array("i"), array("b"), array("B")
        self._rotations: dict[int, float] = {}
        self._scores: dict[int, float] = {}
        self._problems: dict[int, str] = {}

    def add(
        self,
        image: int,
        position: int,
        category: str | None,
        corners: Corners,
        *,
        kind: ShapeKind = "box",
        flags: int = STATED,
        rotation_deg: float = 0.0,
        score: float | None = None,
    ) -> None:
        """Append one box."""
        row = len(self._image)
        self._xyxy.extend(corners)
        self._image.append(image)
        self._position.append(position)
        self._category.append(-1 if category is None else self._index_of.setdefault(category, len(self._index_of)))
        self._kind.append(_KIND_CODE[kind])
        self._flags.append(flags)
        if rotation_deg:
            self._rotations[row] = rotation_deg
        if score is not None:
            self._scores[row] = score

    def add_broken(self, image: int, position: int, problem: str, category: str | None = None) -> None:
        """Append a box that cannot be used."""
        self._problems[len(self._image)] = problem
        self.add(image, position, category, NO_CORNERS, flags=STATED | BROKEN)

    def build(self, num_images: int) -> tuple[BoxTable, list[BoxSlice]]:
        """Sort the boxes by image and return them as a table, with a slice for each image."""
        image = np.frombuffer(self._image, dtype=np.int64) if self._image else np.empty(0, np.int64)
        rows: Any = np.argsort(image, kind="stable")
        if not np.any(np.diff(image) < 0):
            rows = slice(None)  # already in order: no copy
        table = BoxTable(
            categories=tuple(self._index_of),
            xyxy=_column(self._xyxy, np.float64).reshape(-1, 4)[rows],
            category=_column(self._category, np.int32)[rows],
            image=image[rows],
            kind=_column(self._kind, np.int8)[rows],
            flags=_column(self._flags, np.uint8)[rows],
            position=_column(self._position, np.int64)[rows],
            entry_format=self._entry_format,
            rotations=_moved(self._rotations, rows, len(image)),
            scores=_moved(self._scores, rows, len(image)),
            problems=_moved(self._problems, rows, len(image)),
        )
        ends = np.searchsorted(table.image, np.arange(num_images), side="right").tolist()
        return table, [BoxSlice(table, start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _column(values: "array[Any]", kind: Any) -> NDArray[Any]:
    return np.frombuffer(values, dtype=kind) if values else np.empty(0, kind)


def _moved(sparse: dict[int, Any], rows: Any, length: int) -> dict[int, Any]:
    if isinstance(rows, slice) or not sparse:
        return sparse
    row_of = np.empty(length, dtype=np.int64)
    row_of[rows] = np.arange(length)
    return {int(row_of[row]): value for row, value in sparse.items()}


class ImageTableBuilder:
    """Collect whole images and move their boxes into one table."""

    def __init__(self, entry_format: str) -> None:
        """Start empty; the position in ``entry_format`` is read back from ``ParsedBox.entry``."""
        self._boxes = BoxTableBuilder(entry_format)
        self._prefix, self._suffix = entry_format.split("{}")
        self._images: list[ParsedImage] = []

    def add(self, image: ParsedImage) -> None:
        """Append one image with its boxes."""
        row = len(self._images)
        self._images.append(replace(image, boxes=()))
        for box in image.boxes:
            position = int(box.entry.removeprefix(self._prefix).removesuffix(self._suffix))
            if box.problem is not None:
                self._boxes.add_broken(row, position, box.problem, box.category)
                continue
            flags = CROWD * box.is_crowd | IGNORED * box.is_ignored | STATED * box.has_stated_box
            self._boxes.add(
                row,
                position,
                box.category,
                box.xyxy,
                kind=box.kind,
                flags=flags,
                rotation_deg=box.rotation_deg,
                score=box.score,
            )

    def build(self) -> tuple[ParsedImage, ...]:
        """Return the images with their rows of the table."""
        _, slices = self._boxes.build(len(self._images))
        return tuple(replace(image, boxes=boxes) for image, boxes in zip(self._images, slices, strict=True))
