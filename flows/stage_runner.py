"""Run one stage as a Prefect task: ``dvc repro --single-item <stage>`` in a process group of its own.

DVC decides whether there is anything to do; Prefect decides when. DVC always ends with code 255 where a stage fails, so
the cause is parsed from its output.
"""

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from prefect.logging import get_run_logger

from flows.runtime.gpu_lock import gpu_locks
from flows.runtime.process_env import redact
from flows.runtime.retries import retry_with_half_batch, retrying_task
from flows.runtime.subprocess import ProcessTimeout
from flows.workspace.dvc import dvc_env, stream_dvc
from flows.workspace.rounds import record_seconds, stage_log
from flows.workspace.run_lock import WORKSPACE_ENV
from tasks.data.paths import Workspace
from tasks.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    DiskFullError,
    GuardRailError,
    OutOfMemoryError,
    UserError,
)
from tasks.runtime.resource_errors import disk_full_error, mentions_disk_full
from tasks.runtime.stage_main import MICRO_BATCHES_ENV

_EXIT_CODE_PATTERN = re.compile(r"^ERROR: .*\bexited with (-?\d+)")
_LOCK_BUSY_PATTERN = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_NOISE_PATTERN = re.compile(
    r"^(Running stage '|> python -m |(Generating|Updating) lock file|Use `dvc push`"
    r"|To (track the changes|enable auto staging)|\tgit add |\tdvc config core.autostage"
    r"|Data and pipelines are up to date|ERROR: failed to reproduce|$)"
)
_ERROR_BY_EXIT_CODE = {kind.exit_code: kind for kind in (UserError, GuardRailError, OutOfMemoryError, DiskFullError)}
_TERMINATION_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_KILLED_EXIT_CODES = {
    EXIT_INTERRUPTED,
    *(-number for number in _TERMINATION_SIGNALS),
    *(128 + number for number in _TERMINATION_SIGNALS),
}


class StageError(UserError):
    """A stage failed: its last error, the path of its log, and how to run it alone."""

    exit_code = 1


class StageBusyError(StageError):
    """Another process has locked the outputs of the stage."""

    transient = True


class StageKilledError(StageError):
    """A signal ended the stage, for example when memory ran out; the next attempt continues from its checkpoint."""

    transient = True


class StageServiceUnavailableError(StageError):
    """A service that the stage needs, such as the object store, did not answer."""

    transient = True


class StageTimeoutError(StageError):
    """A stage exceeded its time limit; its checkpoint is kept."""


def is_noise(line: str) -> bool:
    """Tell whether a line is DVC's own and has no information for an operator."""
    return bool(_NOISE_PATTERN.search(line))


def stage_failure(root: Path, stage: str, code: int, lines: Sequence[str], log_file: Path) -> UserError:
    """The error behind a ``dvc repro`` of ``stage`` that ended with ``code`` after printing ``lines``."""
    rerun_hint = f"Repeat it alone with: {rerun_command(root, stage)}"
    errors = [line for line in lines if line.startswith("ERROR: ")]
    output = [line for line in lines if line.strip() and not line.startswith("ERROR: ") and not is_noise(line)]
    exit_codes = [int(match[1]) for line in errors if (match := _EXIT_CODE_PATTERN.search(line))]
    exit_code = exit_codes[-1] if exit_codes else code
    if exit_codes and exit_code in _ERROR_BY_EXIT_CODE:
        return _ERROR_BY_EXIT_CODE[exit_code](stage, _error_summary(output), rerun_hint)
    if any(map(mentions_disk_full, (*errors, *output[-1:]))):
        return disk_full_error(stage)
    log_hint = f"Its log: {log_file}. {rerun_hint}"
    if exit_codes and exit_code == EXIT_UNREACHABLE:
        return StageServiceUnavailableError(stage, _error_summary(output), log_hint)
    if exit_code in _KILLED_EXIT_CODES:
        return StageKilledError(stage, f"it was ended from outside (code {exit_code}), expected it to finish", log_hint)
    if any(_LOCK_BUSY_PATTERN.search(line) for line in errors):
        return StageBusyError(stage, _error_summary(errors), rerun_hint)
    if exit_codes:
        return StageError(
            stage, f"the stage ended with code {exit_code} ({_error_summary(output)}), expected 0", log_hint
        )
    return StageError(stage, _error_summary([line.removeprefix("ERROR: ") for line in errors] or lines), log_hint)


def rerun_command(root: Path, stage: str) -> str:
    """What a person types to run a stage alone."""
    return f"cd {root} && dvc repro --single-item {stage}"


def _error_summary(lines: Sequence[str]) -> str:
    return (lines[-1].strip() if lines else "no output").rstrip(".")


@dataclass(frozen=True)
class StageRun:
    """Result of one stage."""

    stage: str
    seconds: float
    skipped: bool
    """DVC found nothing changed, or took the outputs from its cache."""


@retrying_task("{stage}")
def run_stage(root: Path, stage: str, round_number: int, limit_s: float = inf) -> StageRun:
    """Bring one stage up to date within ``limit_s`` seconds, and record how long it took.

    Raises:
        StageError: the stage failed, was killed repeatedly, or exceeded the time limit.
        StageBusyError: something else is writing the same files, even after the retries.
        UserError: the stage rejected its input, or ran out of memory or disk space.
        GuardRailError: training diverged.
    """
    workspace = Workspace(root)
    log = get_run_logger()
    log.info("%s", stage, extra={"gleaner_stage": stage})
    with gpu_locks(stage, str(root), log.info):
        run = retry_with_half_batch(
            lambda micro_batches: _run(workspace, stage, round_number, micro_batches, limit_s), log.warning
        )
    record_seconds(workspace, round_number, stage, run.seconds, skipped=run.skipped)
    return run


def _run(workspace: Workspace, stage: str, round_number: int, micro_batches: int, limit_s: float) -> StageRun:
    log, log_file = get_run_logger(), stage_log(workspace, round_number, stage)
    environment = {**dvc_env(), WORKSPACE_ENV: str(workspace.root.resolve()), MICRO_BATCHES_ENV: str(micro_batches)}
    lines: list[str] = []
    started_s = time.monotonic()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as log_stream:
        log_stream.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n")

        def on_line(line: str) -> None:
            lines.append(line)
            log_stream.write(f"{redact(line)}\n")
            log_stream.flush()
            if not is_noise(line):
                log.info("%s", line, extra={"gleaner_line": stage})

        try:
            arguments = ("repro", "--single-item", stage)
            code = stream_dvc(workspace.root, arguments, on_line, env=environment, limit_s=limit_s)
        except ProcessTimeout:
            raise _timeout_error(stage, limit_s) from None
    if code:
        raise stage_failure(workspace.root, stage, code, lines, log_file)
    skipped = not any(line.startswith("Running stage '") for line in lines)
    return StageRun(stage, round(time.monotonic() - started_s, 3), skipped)


def _timeout_error(stage: str, limit_s: float) -> StageTimeoutError:
    problem = f"it took longer than nightly.stage_timeout_minutes ({limit_s / 60:g}), expected less"
    return StageTimeoutError(stage, problem, "gleaner run resumes from its last checkpoint; or raise the limit.")
