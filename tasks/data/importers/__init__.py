"""Annotations as users have them, read into one form: good records, and a list of what was set aside."""

from pathlib import Path
from typing import Literal

from tasks.data.importers.coco import read_coco
from tasks.data.importers.folder import ImageResolver
from tasks.data.importers.import_report import ImageRecord, ImportReport, ImportResult
from tasks.data.importers.voc import read_voc

Format = Literal["coco", "voc"]

__all__ = ["Format", "ImageRecord", "ImportReport", "ImportResult", "read_annotations", "read_coco", "read_voc"]


def read_annotations(
    annotation_format: Format, annotations: Path, images: Path | ImageResolver, *, max_pixels: int
) -> ImportResult:
    """Read ``annotations`` in the named layout; image files are looked for in ``images``.

    Raises:
        UserError: the annotations are missing, unreadable as a whole, or not one image of them can be used.
    """
    reader = read_coco if annotation_format == "coco" else read_voc
    return reader(annotations, images, max_pixels=max_pixels)
