"""What does not go through the door, with its reason and with what came in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flows.labels.providers.base import Returned
from tasks import files
from tasks.contracts import Quarantined

Kind = Literal["refused", "suspicious", "note"]
"""``suspicious``: well-formed, and hard to believe; a person may confirm it. ``note``: nothing waits for anybody; of an
answer that went on something was left out, or its annotator has given another one since."""
_SHOWN = 100


@dataclass(frozen=True)
class Refusal:
    """One thing set aside."""

    kind: Kind
    batch: int
    """Of the delivery it answers."""
    quarantined: Quarantined
    returned: Mapping[str, Any]
    """The answer, as far as JSON can say it."""


class Unacceptable(ValueError):
    """Why an answer is refused: ``<what> is <value>, expected <allowed>``."""

    kind: Kind = "refused"


class Suspicious(Unacceptable):
    """Why an answer needs somebody's confirmation."""

    kind = "suspicious"


def refusal(kind: Kind, batch: int, reason: str, answer: Returned) -> Refusal:
    """Put an answer aside."""
    returned = as_json(answer)
    where = f"image {str(returned.get('image_id'))[:_SHOWN]}"
    return Refusal(kind, batch, Quarantined(where=where, reason=reason), returned)


def answer_digest(batch: int, returned: Mapping[str, Any]) -> str:
    """The same answer to the same delivery, however often it comes in; 64 hex digits."""
    return files.sha256_json([batch, as_json(returned)])


def as_json(value: Any) -> Any:
    """What came in, as far as JSON in UTF-8 can say it: NaN and half characters become text."""
    if isinstance(value, Mapping):
        return {_text(str(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else _text(repr(value))


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
