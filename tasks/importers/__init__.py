"""Annotations as users have them, read into one form: good records, and a list of what was set aside."""

from pathlib import Path
from typing import Literal

from tasks.importers.coco import read_coco
from tasks.importers.folder import ImageSource
from tasks.importers.records import Findings, ImageRecord, Imported
from tasks.importers.voc import read_voc

Format = Literal["coco", "voc"]

__all__ = ["Findings", "Format", "ImageRecord", "Imported", "read_annotations", "read_coco", "read_voc"]


def read_annotations(layout: Format, annotations: Path, images: Path | ImageSource, *, max_pixels: int) -> Imported:
    """Read ``annotations`` in the named layout; image files are looked for in ``images``.

    Raises:
        UserError: the annotations are missing, unreadable as a whole, or not one image of them can be used.
    """
    reader = read_coco if layout == "coco" else read_voc
    return reader(annotations, images, max_pixels=max_pixels)
