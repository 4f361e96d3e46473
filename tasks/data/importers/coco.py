"""Define the entries of COCO files that come back in the inbox."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Id = int | str


class CocoEntry(BaseModel):
    """What is read of an entry; other keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CocoCategory(CocoEntry):
    """A class."""

    id: Id
    name: str


class CocoImage(CocoEntry):
    """An image; sizes in pixels."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class CocoAnnotation(CocoEntry):
    """A box: x, y, width, height in pixels, 0-based."""

    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    iscrowd: int = 0


def format_coco_error(error: ValidationError) -> str:
    """The first thing wrong with an entry, as a reason to set it aside."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the entry"
    return f"{key} is {json.dumps(first['input'], default=str)[:60]}, expected a COCO field ({first['msg']})"
