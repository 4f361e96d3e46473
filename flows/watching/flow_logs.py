"""The loggers that flows and their tasks write to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
