"""Read and write images with boxes (schemas.ANNOTATED), with the class names that the indices refer to.

Reordering ``classes`` in params.yaml would silently change the meaning of a table of class indices. The names
the indices were made with therefore travel in the file, and reading translates them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.data.schemas import ANNOTATED, Box, LabeledImage, stored_class_names, with_class_names
from tasks.runtime.errors import UserError
from tasks.storage import files


@dataclass(frozen=True)
class AnnotatedImage:
    """One row of schemas.ANNOTATED with class names instead of indices."""

    image_id: str
    uri: str
    width_px: int
    height_px: int
    boxes: tuple[Box, ...]
    batch: int
    """Label batch it came in; -1 for validation, calibration and oracle."""
    crowd_regions: tuple[Box, ...] = ()
    """Regions of several objects: neither object nor background (docs/method.md#crowd-regions)."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is marked on the image."""
        return not self.boxes and not self.crowd_regions


class MarkedBoxes(NamedTuple):
    """The boxes of one image apart from its crowd regions; corners in pixels, shapes (G, 4) and (C, 4)."""

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    crowd_xyxy: NDArray[np.float64]
    crowd_class_ids: NDArray[np.int64]


def marked_boxes(row: Mapping[str, Any]) -> MarkedBoxes:
    """Return the boxes of a row of schemas.ANNOTATED."""
    boxes = np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    class_ids = np.array(row["class_ids"], dtype=np.int64)
    is_crowd = np.array(row["is_crowd"] or [False] * len(class_ids), dtype=bool)
    return MarkedBoxes(boxes[~is_crowd], class_ids[~is_crowd], boxes[is_crowd], class_ids[is_crowd])


def labeled_boxes(label: LabeledImage, classes: Sequence[str]) -> MarkedBoxes:
    """Return the boxes of an answer; a class that is not in ``classes`` gets the index -1."""
    index_of = {name: index for index, name in enumerate(classes)}
    arrays: list[NDArray[Any]] = []
    for boxes in (label.boxes, label.crowd_regions):
        arrays.append(np.array([box.xyxy_px for box in boxes], dtype=np.float64).reshape(-1, 4))
        arrays.append(np.array([index_of.get(box.category, -1) for box in boxes], dtype=np.int64))
    return MarkedBoxes(*arrays)


def write_annotated(path: Path, images: Iterable[AnnotatedImage], classes: Sequence[str]) -> None:
    """Write the images sorted by id.

    Raises:
        KeyError: a box of a class that is not in ``classes``.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    rows = [
        {
            "image_id": image.image_id,
            "uri": image.uri,
            "width_px": image.width_px,
            "height_px": image.height_px,
            "boxes_xyxy": [corner for box in (*image.boxes, *image.crowd_regions) for corner in box.xyxy_px],
            "class_ids": [index_of[box.category] for box in (*image.boxes, *image.crowd_regions)],
            "is_crowd": [False] * len(image.boxes) + [True] * len(image.crowd_regions),
            "batch": image.batch,
        }
        for image in sorted(images, key=lambda image: image.image_id)
    ]
    write_annotated_table(path, pa.Table.from_pylist(rows, schema=ANNOTATED), classes)


def write_annotated_table(path: Path, table: pa.Table, classes: Sequence[str]) -> None:
    """Write a table of ``schemas.ANNOTATED``, whose class indices count in ``classes``."""
    files.write_table(
        path, table.cast(ANNOTATED).replace_schema_metadata(with_class_names(ANNOTATED, classes).metadata)
    )


def read_annotated(path: Path, classes: Sequence[str]) -> list[AnnotatedImage]:
    """Read the images; class indices become names.

    Args:
        path: file of ``write_annotated``.
        classes: as in params.yaml; also the names of the indices, where the file carries none.

    Raises:
        UserError: missing, unreadable, other columns, or a class that ``classes`` does not have.
    """
    table = files.read_table(path, ANNOTATED)
    names = stored_class_names(table.schema) or list(classes)
    return [_annotated_image(row, names, classes, path) for row in table.to_pylist()]


def _annotated_image(row: dict[str, Any], names: list[str], classes: Sequence[str], path: Path) -> AnnotatedImage:
    boxes = _boxes(row, names, classes, path)
    is_crowd = row["is_crowd"] or [False] * len(boxes)
    if len(is_crowd) != len(boxes):
        problem = f"image {row['image_id']} has {len(is_crowd)} crowd marks for {len(boxes)} boxes, expected one each"
        raise UserError(path, problem)
    return AnnotatedImage(
        image_id=row["image_id"],
        uri=row["uri"],
        width_px=row["width_px"],
        height_px=row["height_px"],
        boxes=tuple(box for box, crowd in zip(boxes, is_crowd, strict=True) if not crowd),
        batch=row["batch"],
        crowd_regions=tuple(box for box, crowd in zip(boxes, is_crowd, strict=True) if crowd),
    )


def _boxes(row: dict[str, Any], names: list[str], classes: Sequence[str], path: Path) -> tuple[Box, ...]:
    corners, indices = row["boxes_xyxy"], [int(index) for index in row["class_ids"]]
    if len(corners) != 4 * len(indices):
        problem = f"image {row['image_id']} has {len(corners)} corners for {len(indices)} classes, expected 4 each"
        raise UserError(path, problem)
    boxes = []
    for position, index in enumerate(indices):
        name = names[index] if 0 <= index < len(names) else f"index {index}"
        if name not in classes:
            problem = f"image {row['image_id']} has a box of class {name!r}, expected one of {list(classes)}"
            raise UserError(path, problem, "Add the class to classes in params.yaml.")
        x1, y1, x2, y2 = corners[4 * position : 4 * position + 4]
        boxes.append(Box(category=name, xyxy_px=(x1, y1, x2, y2)))
    return tuple(boxes)
