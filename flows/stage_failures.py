"""Find the cause of a failed ``dvc repro``: DVC always ends with code 255, so its output is parsed."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from tasks.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    DiskFullError,
    GuardRailError,
    OutOfMemoryError,
    UserError,
)
from tasks.runtime.resource_errors import disk_full_error, mentions_disk_full

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
    log_hint = f"All it said: {log_file}. {rerun_hint}"
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
    return (lines[-1].strip() if lines else "it said nothing").rstrip(".")
