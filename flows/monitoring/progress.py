"""Show the progress of a run in the terminal: the current stage, how far it is, and how long it will take.

The count is parsed from the lines a stage prints (``train 40/160  supervised ...``). Flows only log; a handler turns
their records into lines and, on a terminal, into a progress bar. All that is left out here is in ``.gleaner/logs/``.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from flows.monitoring.json_logging import is_json_logging, redirect_to
from tasks.data.paths import STAGES
from tasks.runtime.errors import UserError

_COUNT_PATTERN = re.compile(r"^\w+(?: \w+)? (\d+)/(\d+)\b")
_MINUTE_S, _HOUR_S = 60, 3600
_LINE_INTERVAL_S = 5.0
_PREFECT_NOISE = (
    "Finished in state",
    "Beginning flow run",
    "Beginning subflow run",
    "Created",
    "View at",
    "Task run failed",
)


@dataclass(frozen=True)
class Progress:
    """Progress of a stage at one moment."""

    done: int
    total: int
    remaining_s: float | None
    """None for the first line: there is no pace yet."""

    @property
    def percent(self) -> float:
        """In [0, 100]."""
        return 100 * self.done / self.total

    def __str__(self) -> str:
        left = (
            "" if self.remaining_s is None or self.done == self.total else f", {format_duration(self.remaining_s)} left"
        )
        return f"{self.done} of {self.total}{left}"


class StageProgress:
    """Follow one stage. The pace counts from the first line seen, so that a resumed stage does not look fast."""

    def __init__(self) -> None:
        """Start without any line."""
        self._first: tuple[int, float] | None = None

    def update(self, line: str, now_s: float) -> Progress | None:
        """Return the progress that a line states; None if it states none.

        Args:
            line: as the stage printed it.
            now_s: of a clock that never goes back.
        """
        match = _COUNT_PATTERN.match(line)
        if match is None or not 0 < int(match[1]) <= int(match[2]):
            return None
        done, total = int(match[1]), int(match[2])
        if self._first is None or done <= self._first[0]:
            self._first = (done, now_s)
            return Progress(done, total, None)
        first, since_s = self._first
        return Progress(done, total, (total - done) * (now_s - since_s) / (done - first))


def format_duration(seconds: float) -> str:
    """Format seconds as ``2 h 05 min``, ``12 min`` or ``40 s``."""
    if seconds >= _HOUR_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S):02d} min"
    return f"{round(seconds / _MINUTE_S)} min" if seconds >= 2 * _MINUTE_S else f"{round(seconds)} s"


@contextmanager
def live_progress(console: Console, on_published: Callable[[int], None]) -> Iterator[None]:
    """Show what flows log inside this block; call ``on_published`` after each finished round.

    Where logs are JSON, the run writes them itself, and nothing else is shown.
    """
    if is_json_logging():
        with redirect_to(logging.NullHandler()):
            yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        redirect_to(_LiveProgressHandler(console, bar, on_published)),
    ):
        yield


class _LiveProgressHandler(logging.Handler):
    """Print the log records of a run; of a stage one line every few seconds, and its last one."""

    def __init__(self, console: Console, bar: RichProgress, on_published: Callable[[int], None]) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._bar = bar
        self._on_published = on_published
        self._task = bar.add_task("round", total=len(STAGES), visible=False)
        self._stage_progress = StageProgress()
        self._pending_line: str | None = None
        self._last_message = ""
        self._printed_at_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record, or leave it to the log files."""
        try:
            self._show(record)
        except Exception:
            self.handleError(record)

    def _show(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if hasattr(record, "gleaner_line"):
            self._show_line(message)
            return
        self._flush_pending_line()
        if hasattr(record, "gleaner_stage"):
            self._show_stage(message)
        elif hasattr(record, "gleaner_round"):
            self._bar.reset(self._task, total=len(STAGES), visible=True)
            self._console.print(f"[bold]Round {record.gleaner_round}[/bold]")
        elif hasattr(record, "gleaner_published"):
            self._bar.update(self._task, completed=len(STAGES), description="publish")
            self._console.print(escape(message))
            self._on_published(record.gleaner_published)
        elif not message.startswith(_PREFECT_NOISE) and not _is_user_error(record) and message != self._last_message:
            self._last_message = message  # task and flow both report a crash
            style = "yellow" if record.levelno >= logging.WARNING else None
            self._console.print(escape(message), style=style, soft_wrap=True)

    def _show_stage(self, stage: str) -> None:
        self._stage_progress = StageProgress()
        self._bar.update(self._task, completed=STAGES.index(stage), description=stage)
        self._console.print(f"[cyan]{time.strftime('%H:%M:%S')}[/cyan] {stage}")

    def _show_line(self, line: str) -> None:
        self._pending_line = line
        progress = self._stage_progress.update(line, time.monotonic())
        if progress is not None:
            stage = line.split()[0]
            self._bar.update(self._task, description=f"{stage} {progress}")
        if time.monotonic() - self._printed_at_s >= _LINE_INTERVAL_S:
            self._flush_pending_line()

    def _flush_pending_line(self) -> None:
        if self._pending_line is not None:
            self._console.print(f"         [dim]{escape(self._pending_line)}[/dim]", soft_wrap=True)
            self._pending_line = None
            self._printed_at_s = time.monotonic()


def _is_user_error(record: logging.LogRecord) -> bool:
    """Drop errors that the command line prints once, at the end."""
    return record.exc_info is not None and isinstance(record.exc_info[1], UserError)
