"""Keep secrets and control characters out of every text that leaves the process: terminal, logs, Prefect, tracebacks.

Messages of services repeat the address they were called at, passwords included. Names of files, classes and annotators
may hold sequences that a terminal obeys.
"""

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from flows.runtime.process_env import redact
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import escape_control_characters

_TEXT_ATTRIBUTES = ("message", "where", "problem", "fix", "detail")
_installed: list[Callable[..., logging.LogRecord]] = []


class SafeConsole(Console):
    """A console that prints no secrets, and of control characters only its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string safe before it is measured."""
        return super().render_str(safe_text(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with every piece of text made safe."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else safe_text(text), style, control)


def safe_text(text: str) -> str:
    """Replace secrets by ``***``, and control characters but tab and line break by their escapes in Python."""
    return escape_control_characters(redact(text), keep="\t\n")


def install_masking() -> None:
    """Mask every log record of this process, whoever writes it, and the traceback of a bug; once, if called again."""
    if _installed:
        return
    factory = logging.getLogRecordFactory()
    _installed.append(factory)

    def make_record(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = factory(*arguments, **options)
        _mask_record(record)
        return record

    logging.setLogRecordFactory(make_record)
    sys.excepthook = _print_masked


def _mask_record(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit: logging reports it itself
        return
    masked = redact(message)
    if masked != message:
        record.msg, record.args = masked, ()
    if record.exc_info and record.exc_info[1] is not None:
        text = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        masked = redact(text)
        if masked != text:
            record.exc_text = masked  # what formatters print instead of formatting it themselves
            mask_exception(record.exc_info[1])


def _print_masked(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, where))))


@contextmanager
def masked_errors() -> Iterator[None]:
    """Mask the texts of an exception that leaves the block, as Prefect stores them with the state of a run."""
    try:
        yield
    except Exception as error:
        mask_exception(error)
        raise


def mask_exception(error: BaseException) -> None:
    """Replace secrets in the texts of an exception and of those that caused it, in place."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        current.args = tuple(redact(value) if isinstance(value, str) else value for value in current.args)
        for name in _TEXT_ATTRIBUTES:
            value = getattr(current, name, None)
            if isinstance(value, str) and (isinstance(current, UserError) or name == "message"):
                setattr(current, name, redact(value))
        current = current.__cause__ or current.__context__
