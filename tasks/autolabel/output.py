"""Write labels as COCO, YOLO and Pascal VOC, and where each box comes from as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from tasks.autolabel.labels import PROVENANCE, LabeledRecord
from tasks.data.formats.base import ParsedBox, ParsedDocument, ParsedImage, numbered_classes
from tasks.data.formats.coco import write_coco
from tasks.data.formats.voc import write_voc
from tasks.data.formats.yolo import write_yolo, write_yolo_classes
from tasks.storage import files

_IN_COCO = [
    "source", "part", "annotator", "finished_at", "model_version", "model_sha256", "score", "rule", "threshold",
    "promised_precision", "precision_bound", "promised_wrong_images_frac", "wrong_images_bound", "confidence_level",
]  # fmt: skip
"""Columns of PROVENANCE that each box has as attributes in COCO, where they are not null."""


def write_labels(folder: Path, records: Sequence[LabeledRecord], classes: Sequence[str]) -> None:
    """Write ``complete/``, ``partial/`` and ``validation/``, each in three formats, and ``provenance.parquet``.

    Crowd regions are in COCO only: YOLO and VOC have no word for them.

    Args:
        folder: new folder.
        records: images with their boxes.
        classes: class names in the order of their indices.
    """
    for name in ("complete", "partial", "validation"):
        _write_formats(folder / name, [record for record in records if record.folder == name], classes)
    rows = [row for record in records for row in record.rows]
    files.write_table(folder / "provenance.parquet", pa.Table.from_pylist(rows, schema=PROVENANCE))


def _write_formats(folder: Path, records: Sequence[LabeledRecord], classes: Sequence[str]) -> None:
    files.write_bytes(folder / "coco.json", write_coco(_document(records, classes)))
    files.write_bytes(folder / "yolo" / "data.yaml", write_yolo_classes(classes))
    names = _label_names(records)
    for record in records:
        alone = _document([record], classes, names[record.image_id], is_plain=True)
        ((_, voc),) = write_voc(alone)
        _, (_, yolo) = write_yolo(alone)  # the first is data.yaml
        stem = PurePosixPath(names[record.image_id])
        _write_quickly(folder / "voc" / stem.with_suffix(".xml"), voc)
        _write_quickly(folder / "yolo" / "labels" / stem.with_suffix(".txt"), yolo)


def _write_quickly(path: Path, content: bytes) -> None:
    """Write one of very many files of a folder that gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _label_names(records: Iterable[LabeledRecord]) -> dict[str, str]:
    """Return the names under which label files stand: the image's own, or its id where two names differ by ending."""
    taken: set[str] = set()
    names = {}
    for record in records:
        stem = PurePosixPath(record.file_name).with_suffix("").as_posix()
        is_free = stem not in taken
        names[record.image_id] = (
            record.file_name if is_free else record.image_id + PurePosixPath(record.file_name).suffix
        )
        taken.add(stem)
    return names


def _document(
    records: Sequence[LabeledRecord], classes: Sequence[str], name: str | None = None, *, is_plain: bool = False
) -> ParsedDocument:
    images = []
    for record in records:
        image = ParsedImage(
            name=name or record.file_name,
            entry=record.image_id,
            boxes=[_box(row) for row in record.rows],
            image_id=record.image_id,
            width_px=record.width_px,
            height_px=record.height_px,
            status=("labeled" if record.rows else "empty") if record.is_complete else None,
            annotator=record.annotator,
        )
        images.append(_plain(image) if is_plain else image)
    return ParsedDocument("coco", "autolabel", numbered_classes(classes), tuple(images))


def _plain(image: ParsedImage) -> ParsedImage:
    """Leave out what YOLO and VOC cannot say: scores would be read as a sixth column by few tools."""
    boxes = [replace(box, score=None, attributes=None) for box in image.boxes if not box.is_crowd]
    return replace(image, boxes=boxes)


def _box(row: dict[str, Any]) -> ParsedBox:
    x1, y1, x2, y2 = row["xyxy_px"]
    attributes = {name: row[name] for name in _IN_COCO if row[name] is not None}
    return ParsedBox(
        row["category"], (x1, y1, x2, y2), is_crowd=row["is_crowd"], score=row["score"], attributes=attributes
    )
