"""Log for machines: with ``GLEANER_LOG_FORMAT=json`` every message is one JSON object on a line of standard output.

Fields: time (ISO 8601, UTC), level, campaign, round, stage (null outside a stage), message, and exception where there
is one.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from flows.runtime.process_env import redact
from flows.workspace.rounds import newest_round_or_none
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

LOG_FORMAT_ENV = "GLEANER_LOG_FORMAT"
_LOGGER_NAMES = ("prefect.flow_runs", "prefect.task_runs")
"""Loggers that flows and their tasks write to."""


class LogFormat(StrEnum):
    """Format of a run's log."""

    text = "text"
    json = "json"


def is_json_logging() -> bool:
    """Tell whether the user asked for JSON.

    Raises:
        UserError: the variable has an unknown value.
    """
    choice = os.environ.get(LOG_FORMAT_ENV) or LogFormat.text
    if choice not in set(LogFormat):
        allowed = ", ".join(LogFormat)
        raise UserError(LOG_FORMAT_ENV, f"the value is {choice!r}, expected one of {allowed}")
    return is_json_logging_unchecked()


def is_json_logging_unchecked() -> bool:
    """Tell whether the user asked for JSON; an unknown value counts as text."""
    return os.environ.get(LOG_FORMAT_ENV) == LogFormat.json


def set_log_format(choice: LogFormat | None) -> LogFormat | None:
    """Let an option of the command line override the environment, for this process and its children."""
    if choice is not None:
        os.environ[LOG_FORMAT_ENV] = choice
    return choice


@contextmanager
def json_logging(workspace: Workspace) -> Iterator[None]:
    """Within the block, write what a run logs as JSON if the user asked for it; change nothing otherwise."""
    if not is_json_logging():
        yield
        return
    with redirect_to(JsonLinesHandler(workspace.root.name, newest_round_or_none(workspace), sys.stdout)):
        yield


class JsonLinesHandler(logging.StreamHandler[TextIO]):
    """Write one line of JSON per record."""

    def __init__(self, campaign: str, round_number: int | None, stream: TextIO) -> None:
        """Take the campaign's name, its current round, and the stream to write to."""
        super().__init__(stream)
        self.setLevel(logging.INFO)
        self.setFormatter(_RunFormatter(campaign, round_number))


class _RunFormatter(JsonFormatter):
    """Add campaign, round and stage to a record; the round changes with the records that announce one."""

    def __init__(self, campaign: str | None, round_number: int | None) -> None:
        super().__init__(json_ensure_ascii=False)
        self._campaign = campaign
        self._round = round_number

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Fill the fields that the module's docstring lists, without secrets."""
        self._round = getattr(record, "gleaner_round", self._round)
        log_data.update(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            level=record.levelname.lower(),
            campaign=self._campaign,
            round=self._round,
            stage=getattr(record, "task_run_name", None),
            message=redact(record.getMessage()),
        )
        if "exc_info" in message_dict and not (record.exc_info and isinstance(record.exc_info[1], UserError)):
            log_data["exception"] = redact(message_dict["exc_info"])


def json_error_line(message: str) -> str:
    """Format the line a command ends with when it fails."""
    record = logging.makeLogRecord({"levelname": "ERROR", "levelno": logging.ERROR, "msg": message})
    return _RunFormatter(None, None).format(record)


@contextmanager
def attach_handler(handler: logging.Handler) -> Iterator[None]:
    """Within the block, pass what flows and tasks log to ``handler`` as well."""
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
    """Within the block, pass what flows and tasks log to ``handler`` only.

    Prefect's own handler would print it again, with tracebacks.
    """
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
