"""Logs for machines: with ``GLEANER_LOG_FORMAT=json`` every message is one JSON object on a line of standard output.

Fields: time (ISO 8601, UTC), level, campaign, round, stage (null outside of one), message, and exception where there
is one.

The loggers that flows and their tasks write to.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from flows.monitoring.redaction import redact
from flows.workspace.state import newest_round
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

LOG_FORMAT_ENV = "GLEANER_LOG_FORMAT"


class LogFormat(StrEnum):
    """How a night logs."""

    text = "text"
    json = "json"


def is_json_logging() -> bool:
    """Whether the user asked for it.

    Raises:
        UserError: the variable holds something else.
    """
    choice = os.environ.get(LOG_FORMAT_ENV) or LogFormat.text
    if choice not in set(LogFormat):
        allowed = ", ".join(LogFormat)
        raise UserError(LOG_FORMAT_ENV, f"the value is {choice!r}, expected one of {allowed}")
    return is_json_logging_unchecked()


def is_json_logging_unchecked() -> bool:
    """The same, without a word about another value."""
    return os.environ.get(LOG_FORMAT_ENV) == LogFormat.json


def set_log_format(choice: LogFormat | None) -> LogFormat | None:
    """Let an option of the command line win over the environment, for us and the processes we start."""
    if choice is not None:
        os.environ[LOG_FORMAT_ENV] = choice
    return choice


@contextmanager
def json_logging(workspace: Workspace) -> Iterator[None]:
    """What a night logs inside this block goes out as JSON, if the user asked for it; otherwise nothing changes."""
    if not is_json_logging():
        yield
        return
    with redirect_to(JsonLinesHandler(workspace.root.name, _current_round(workspace), sys.stdout)):
        yield


class JsonLinesHandler(logging.Handler):
    """Writes one line a record; remembers which round is at work."""

    def __init__(self, campaign: str, round_number: int | None, stream: TextIO) -> None:
        """Take the campaign's name, the round it stands at, and where to write."""
        super().__init__(logging.INFO)
        self._campaign = campaign
        self._round = round_number
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self._round = getattr(record, "gleaner_round", self._round)
            self._stream.write(self._line(record) + "\n")
            self._stream.flush()
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "campaign": self._campaign,
            "round": self._round,
            "stage": getattr(record, "task_run_name", None),
            "message": redact(record.getMessage()),
        }
        if record.exc_info and not isinstance(record.exc_info[1], UserError):
            entry["exception"] = redact(logging.Formatter().formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def json_error_line(message: str) -> str:
    """The one line a command ends with when it fails."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": "error", "campaign": None, "round": None, "stage": None}
    return json.dumps({**entry, "message": redact(message)}, ensure_ascii=False)


def _current_round(workspace: Workspace) -> int | None:
    try:
        return newest_round(workspace)
    except UserError:
        return None


_LOGGER_NAMES = ("prefect.flow_runs", "prefect.task_runs")


@contextmanager
def attach_handler(handler: logging.Handler) -> Iterator[None]:
    """Let ``handler`` hear what flows and tasks log inside this block, beside whoever hears it already."""
    loggers = [logging.getLogger(name) for name in _LOGGER_NAMES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def redirect_to(handler: logging.Handler) -> Iterator[None]:
    """The same, and keep it from the screen: Prefect's own handler would print it again, with tracebacks."""
    loggers = [logging.getLogger(name) for name in _LOGGER_NAMES]
    previous = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
    try:
        with attach_handler(handler):
            yield
    finally:
        for logger, propagate in zip(loggers, previous, strict=True):
            logger.propagate = propagate
