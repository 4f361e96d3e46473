"""Define a check and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flows.preflight.context import CheckContext

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    state: State
    """``warn``: a run works, but a person should know. ``fail``: a run would fail or give wrong results."""
    message: str
    """What was found: one sentence without its final period."""
    fix: str = ""
    """How to correct it; empty if nothing has to be done."""


class CheckSkipped(Exception):
    """A check cannot run because of a problem that another check reports."""


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    """Unique; an anchor of docs/operations.md."""
    run: Callable[[CheckContext], Finding]
    """May raise UserError, reported as ``fail``, or CheckSkipped, reported as ``warn``."""
    limit_s: float
    """Time limit; after it the result is ``fail`` and the check is abandoned."""
    quick: bool = False
    """Takes well under a second, changes nothing and needs no service: a run starts with it."""
    allow_unknown: bool = False
    """A timeout or an error in the check itself is a ``warn`` instead of a ``fail``."""


def passed(message: str) -> Finding:
    """Return a passing result."""
    return Finding("pass", message)


def warned(message: str, fix: str) -> Finding:
    """Return a warning."""
    return Finding("warn", message, fix)


def failed(message: str, fix: str) -> Finding:
    """Return a failure."""
    return Finding("fail", message, fix)
