"""One stage as a Prefect task: ``dvc repro --single-item <stage>`` in a process group of its own.

DVC decides whether there is anything to do; Prefect decides when.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger

from flows.data_versions import child_environment, dvc_command
from flows.process import stream
from flows.stage_log import record_seconds, stage_log
from tasks.errors import GuardRailError, UserError
from tasks.paths import Workspace

_EXITED = re.compile(r"^ERROR: .*\bexited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_CHATTER = re.compile(
    r"^(Running stage '|> python -m |(Generating|Updating) lock file|Use `dvc push`"
    r"|To (track the changes|enable auto staging)|\tgit add |\tdvc config core.autostage"
    r"|Data and pipelines are up to date|ERROR: failed to reproduce|$)"
)


class StageError(UserError):
    """A stage ended badly; says what it said last, where all of it stands and how to repeat it alone."""

    exit_code = 1


class StageBusyError(StageError):
    """Another process holds what the stage writes; worth trying again."""


@dataclass(frozen=True)
class StageRun:
    """What became of one stage."""

    stage: str
    seconds: float
    skipped: bool
    """DVC found nothing changed, or took the outputs from its cache."""


def _is_transient(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Only a lock that somebody else holds passes by itself; a stage's own mistake does not."""
    return isinstance(state.result(raise_on_failure=False), StageBusyError)


@task(
    task_run_name="{stage}",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,
)
def reproduce(root: Path, stage: str, round_number: int) -> StageRun:
    """Bring one stage up to date and record how long it took.

    Raises:
        StageError: the stage failed.
        StageBusyError: something else is writing the same files, even after the retries.
        UserError: the stage refused what the user gave it.
        GuardRailError: training left its bounds.
    """
    workspace = Workspace(root)
    log = get_run_logger()
    log_file = stage_log(workspace, round_number, stage)
    log.info("%s", stage, extra={"gleaner_stage": stage})
    lines: list[str] = []
    started_s = time.monotonic()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as kept:
        kept.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n")

        def take(line: str) -> None:
            lines.append(line)
            kept.write(f"{line}\n")
            kept.flush()
            if not _CHATTER.search(line):
                log.info("%s", line, extra={"gleaner_line": stage})

        code = stream(repeat_arguments(stage), cwd=root, env=child_environment(), on_line=take)
    if code:
        raise _failure(workspace, stage, lines, log_file)
    run = StageRun(
        stage,
        round(time.monotonic() - started_s, 3),
        skipped=not any(line.startswith("Running stage '") for line in lines),
    )
    record_seconds(workspace, round_number, stage, run.seconds, skipped=run.skipped)
    return run


def repeat_arguments(stage: str) -> list[str]:
    """The command behind a stage."""
    return dvc_command("repro", "--single-item", stage)


def _failure(workspace: Workspace, stage: str, lines: Sequence[str], log_file: Path) -> UserError:
    """The error behind a failed ``dvc repro``, which itself always ends with code 255."""
    repeat = f"Repeat it alone with: cd {workspace.root} && dvc repro --single-item {stage}"
    errors = [line for line in lines if line.startswith("ERROR: ")]
    said = [line for line in lines if line.strip() and not line.startswith("ERROR: ") and not _CHATTER.search(line)]
    exits = [int(match[1]) for line in errors if (match := _EXITED.search(line))]
    if exits and exits[-1] in (UserError.exit_code, GuardRailError.exit_code):
        kind = GuardRailError if exits[-1] == GuardRailError.exit_code else UserError
        return kind(stage, _sentence(said), repeat)
    if any(_BUSY.search(line) for line in errors):
        return StageBusyError(stage, _sentence(errors), repeat)
    if exits:
        reason = f"the stage ended with code {exits[-1]} ({_sentence(said)}), expected 0"
    else:
        reason = _sentence([line.removeprefix("ERROR: ") for line in errors] or lines)
    return StageError(stage, reason, f"All it said: {log_file}. {repeat}")


def _sentence(lines: Sequence[str]) -> str:
    return (lines[-1].strip() if lines else "it said nothing").rstrip(".")
