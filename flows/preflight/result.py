"""What a check finds, and what a check is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flows.preflight.context import CheckContext

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    state: State
    """``warn``: the night will run, and somebody should know. ``fail``: the night would not, or not rightly."""
    message: str
    """What was found, as one sentence without its dot."""
    fix: str = ""
    """What to do about it; empty where nothing has to be done."""


class CheckSkipped(Exception):
    """A check cannot be tried, because of something another check reports."""


@dataclass(frozen=True)
class Check:
    """One thing that is tried."""

    name: str
    """Unique; an anchor of docs/operations.md."""
    run: Callable[[CheckContext], Finding]
    """May raise UserError, which is a ``fail``, or CheckSkipped, which is a ``warn``."""
    limit_s: float
    """After this the answer is ``fail``, and nobody waits for it any longer."""
    quick: bool = False
    """Takes well under a second, changes nothing and needs no service: a night tries it before it begins."""
    allow_unknown: bool = False
    """No answer, or a broken check, is a ``warn`` instead of a ``fail``."""


def passed(message: str) -> Finding:
    """All is well."""
    return Finding("pass", message)


def warned(message: str, fix: str) -> Finding:
    """Somebody should know."""
    return Finding("warn", message, fix)


def failed(message: str, fix: str) -> Finding:
    """A night would not run, or not rightly."""
    return Finding("fail", message, fix)
