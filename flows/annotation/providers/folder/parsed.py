"""What the readers of COCO, YOLO and VOC agree on: what a file says of an image, unchecked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class TruncatedFileError(ValueError):
    """The file ends too early: somebody is still writing it, or a copy broke off."""


class UnsupportedFormatError(ValueError):
    """Why nothing of a file can be used."""


@dataclass(frozen=True)
class ParsedAnnotation:
    """One file's answer to one image. ``flows.annotation.validation`` decides what of it is believed."""

    image: str
    """As the file calls the image."""
    alternative_name: str | None = None
    """What else it calls the image, if the first name means nothing."""
    boxes: tuple[Mapping[str, Any], ...] = ()
    """category, xyxy_px, rotation_deg each."""
    has_explicit_status: bool = False
    """The file was made for this image alone, or says that a person has finished it."""
    is_reviewed: bool = False
    """A person has said so in words, so that even untouched boxes are an answer."""
    status: Any = None
    """None: follows from the boxes."""
    annotator: Any = None
    finished_at: Any = None
    """ISO 8601."""
    seconds_spent: Any = None
    size_px: tuple[int, int] | None = None
    """Width and height of the picture that was labeled; None where the file does not say."""
    sha256: Any = None
    problem: str | None = None
    """Why this answer cannot be used."""


def is_complete(content: bytes, *endings: bytes) -> bool:
    """Whether a file's last characters are those every whole file of its kind ends with."""
    return content.rstrip().endswith(endings)
