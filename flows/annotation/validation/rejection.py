"""Represent rejected annotations: the reason, and the annotation as it was returned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flows.annotation.providers.base import RawAnnotation
from tasks.data.schemas import Quarantined
from tasks.storage import files

RejectionKind = Literal["refused", "suspicious", "note"]
"""``refused``: invalid. ``suspicious``: valid but implausible; a person may approve it. ``note``: needs no action; a
part of an accepted annotation was left out, or its annotator has changed it since."""
_MAX_ID_LENGTH = 100


@dataclass(frozen=True)
class Rejection:
    """One rejected annotation, or a note about an accepted one."""

    kind: RejectionKind
    batch: int
    """Number of the delivery that the annotation belongs to."""
    quarantined: Quarantined
    raw_annotation: Mapping[str, Any]
    """The annotation as returned, converted to JSON values."""


class InvalidAnnotation(ValueError):
    """Why an annotation is refused: ``<what> is <value>, expected <allowed>``."""

    kind: RejectionKind = "refused"


class ImplausibleAnnotation(InvalidAnnotation):
    """Why a valid annotation needs a person's approval."""

    kind = "suspicious"


def reject(kind: RejectionKind, batch: int, reason: str, raw: RawAnnotation) -> Rejection:
    """Build a rejection; the annotation is converted to JSON values."""
    raw_json = to_json_value(raw)
    item = f"image {str(raw_json.get('image_id'))[:_MAX_ID_LENGTH]}"
    return Rejection(kind, batch, Quarantined(item=item, reason=reason), raw_json)


def annotation_digest(batch: int, raw: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an annotation of a delivery, 64 hex digits; equal however often it is returned."""
    return files.sha256_json([batch, to_json_value(raw)])


def to_json_value(value: Any) -> Any:
    """Convert any value to what JSON in UTF-8 can hold; NaN, infinity and lone surrogates become text."""
    if isinstance(value, Mapping):
        return {_utf8_text(str(key)): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, str):
        return _utf8_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else _utf8_text(repr(value))


def _utf8_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
