"""One stage as a Prefect task: ``dvc repro --single-item <stage>`` in a process group of its own.

DVC decides whether there is anything to do; Prefect decides when.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect.logging import get_run_logger

from flows.data_versions import child_environment, dvc_command
from flows.safety.gpu import gpus_for
from flows.safety.process import TookTooLong, stream
from flows.safety.recovery import NIGHT_OF
from flows.safety.retries import night_task, once_more_with_half
from flows.stage_errors import StageTimeoutError, is_chatter, stage_failure
from flows.stage_log import record_seconds, stage_log
from tasks.entry import BATCH_DIVISOR
from tasks.params import load_params
from tasks.paths import Workspace


@dataclass(frozen=True)
class StageRun:
    """What became of one stage."""

    stage: str
    seconds: float
    skipped: bool
    """DVC found nothing changed, or took the outputs from its cache."""


@night_task("{stage}")
def reproduce(root: Path, stage: str, round_number: int) -> StageRun:
    """Bring one stage up to date and record how long it took.

    Raises:
        StageError: the stage failed, was killed time and again, or took too long.
        StageBusyError: something else is writing the same files, even after the retries.
        UserError: the stage refused what the user gave it, or ran out of memory or disk space.
        GuardRailError: training left its bounds.
    """
    workspace = Workspace(root)
    log = get_run_logger()
    log.info("%s", stage, extra={"gleaner_stage": stage})
    limit_s = 60 * load_params(workspace.params).nightly.stage_timeout_minutes
    with gpus_for(stage, str(root), log.info):
        run = once_more_with_half(lambda divisor: _run(workspace, stage, round_number, divisor, limit_s), log.warning)
    record_seconds(workspace, round_number, stage, run.seconds, skipped=run.skipped)
    return run


def repeat_arguments(stage: str) -> list[str]:
    """The command behind a stage."""
    return dvc_command("repro", "--single-item", stage)


def _run(workspace: Workspace, stage: str, round_number: int, divisor: int, limit_s: float) -> StageRun:
    log, log_file = get_run_logger(), stage_log(workspace, round_number, stage)
    environment = {**child_environment(), NIGHT_OF: str(workspace.root.resolve()), BATCH_DIVISOR: str(divisor)}
    lines: list[str] = []
    started_s = time.monotonic()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as kept:
        kept.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n")

        def take(line: str) -> None:
            lines.append(line)
            kept.write(f"{line}\n")
            kept.flush()
            if not is_chatter(line):
                log.info("%s", line, extra={"gleaner_line": stage})

        try:
            code = stream(repeat_arguments(stage), cwd=workspace.root, env=environment, on_line=take, limit_s=limit_s)
        except TookTooLong:
            raise _too_slow(stage, limit_s) from None
    if code:
        raise stage_failure(workspace.root, stage, code, lines, log_file)
    skipped = not any(line.startswith("Running stage '") for line in lines)
    return StageRun(stage, round(time.monotonic() - started_s, 3), skipped)


def _too_slow(stage: str, limit_s: float) -> StageTimeoutError:
    took = f"it took longer than nightly.stage_timeout_minutes ({limit_s / 60:g}), expected less"
    return StageTimeoutError(stage, took, "What it kept is kept: gleaner night goes on from there, or raise the limit.")
