"""What does not go through the door, with its reason and with what came in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flows.annotation.providers.base import RawAnnotation
from tasks.data.schemas import Quarantined
from tasks.storage import files

RejectionKind = Literal["refused", "suspicious", "note"]
"""``suspicious``: well-formed, and hard to believe; a person may confirm it. ``note``: nothing waits for anybody; of an
answer that went on something was left out, or its annotator has given another one since."""
_MAX_ID_LENGTH = 100


@dataclass(frozen=True)
class Rejection:
    """One thing set aside."""

    kind: RejectionKind
    batch: int
    """Of the delivery it answers."""
    quarantined: Quarantined
    raw_annotation: Mapping[str, Any]
    """The answer, as far as JSON can say it."""


class InvalidAnnotation(ValueError):
    """Why an answer is refused: ``<what> is <value>, expected <allowed>``."""

    kind: RejectionKind = "refused"


class ImplausibleAnnotation(InvalidAnnotation):
    """Why an answer needs somebody's confirmation."""

    kind = "suspicious"


def reject(kind: RejectionKind, batch: int, reason: str, raw: RawAnnotation) -> Rejection:
    """Put an answer aside."""
    raw_json = to_json_value(raw)
    where = f"image {str(raw_json.get('image_id'))[:_MAX_ID_LENGTH]}"
    return Rejection(kind, batch, Quarantined(item=where, reason=reason), raw_json)


def annotation_digest(batch: int, raw: Mapping[str, Any]) -> str:
    """The same answer to the same delivery, however often it comes in; 64 hex digits."""
    return files.sha256_json([batch, to_json_value(raw)])


def to_json_value(value: Any) -> Any:
    """What came in, as far as JSON in UTF-8 can say it: NaN and half characters become text."""
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
