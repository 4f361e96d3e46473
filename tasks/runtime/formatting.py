"""Format numbers, counts, lists and durations as text."""

import re
from collections.abc import Sequence

DASH = "–"
"""Stands where a figure does not exist."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Also Unicode's own line breaks, and marks that turn the direction of what follows."""


def number(value: float | None, digits: int = 1) -> str:
    """Format a figure with fixed decimals, a thousands separator and a true minus; None is a dash."""
    if value is None or value != value:
        return DASH
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """Format a difference with its sign; a true minus, not a hyphen."""
    if value is None or value != value:
        return DASH
    text = number(abs(value), digits)
    return f"±{text}" if float(f"{value:.{digits}f}") == 0 else ("+" if value > 0 else "−") + text


def pluralize(value: float, one: str, many: str | None = None) -> str:
    """Return ``1 image`` or ``2 images`` with a thousands separator, for pages and reports."""
    return f"{number(value, 0)} {_noun(value, one, many)}"


def join_and(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def escape_control_characters(text: str, keep: str = "") -> str:
    """Replace control characters by their escapes in Python, but for those in ``keep``."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode("ascii")

    return _CONTROL.sub(escape, text)


def duration(seconds: float) -> str:
    """Format seconds in the largest fitting unit."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 image`` or ``2 images`` with plain digits, for messages; ``plural``: of nouns that do not end in s."""
    return f"{number} {_noun(number, noun, plural)}"


def count_are(number: int, noun: str) -> str:
    """Return ``1 image is`` or ``2 images are``."""
    return f"{count(number, noun)} {'is' if number == 1 else 'are'}"


def _noun(number: float, one: str, many: str | None) -> str:
    return one if number == 1 else many or f"{one}s"
