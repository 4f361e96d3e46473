"""One stage as a Prefect task: ``dvc repro --single-item <stage>`` in a process group of its own.

DVC decides whether there is anything to do; Prefect decides when.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect.logging import get_run_logger

from flows.runtime.gpu_lock import gpu_locks
from flows.runtime.retries import retry_with_half_batch, retrying_task
from flows.runtime.subprocess import ProcessTimeout, run_streaming
from flows.stage_failures import StageTimeoutError, is_noise, stage_failure
from flows.workspace.dvc import dvc_command, dvc_env
from flows.workspace.rounds import record_seconds, stage_log
from flows.workspace.run_lock import WORKSPACE_ENV
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.stage_main import MICRO_BATCHES_ENV


@dataclass(frozen=True)
class StageRun:
    """Result of one stage."""

    stage: str
    seconds: float
    skipped: bool
    """DVC found nothing changed, or took the outputs from its cache."""


@retrying_task("{stage}")
def run_stage(root: Path, stage: str, round_number: int) -> StageRun:
    """Bring one stage up to date and record how long it took.

    Raises:
        StageError: the stage failed, was killed repeatedly, or exceeded the time limit.
        StageBusyError: something else is writing the same files, even after the retries.
        UserError: the stage rejected its input, or ran out of memory or disk space.
        GuardRailError: training diverged.
    """
    workspace = Workspace(root)
    log = get_run_logger()
    log.info("%s", stage, extra={"gleaner_stage": stage})
    limit_s = 60 * load_params(workspace.params).nightly.stage_timeout_minutes
    with gpu_locks(stage, str(root), log.info):
        run = retry_with_half_batch(
            lambda micro_batches: _run(workspace, stage, round_number, micro_batches, limit_s), log.warning
        )
    record_seconds(workspace, round_number, stage, run.seconds, skipped=run.skipped)
    return run


def dvc_args(stage: str) -> list[str]:
    """Return the DVC command that runs a stage."""
    return dvc_command("repro", "--single-item", stage)


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
            log_stream.write(f"{line}\n")
            log_stream.flush()
            if not is_noise(line):
                log.info("%s", line, extra={"gleaner_line": stage})

        try:
            code = run_streaming(dvc_args(stage), cwd=workspace.root, env=environment, on_line=on_line, limit_s=limit_s)
        except ProcessTimeout:
            raise _timeout_error(stage, limit_s) from None
    if code:
        raise stage_failure(workspace.root, stage, code, lines, log_file)
    skipped = not any(line.startswith("Running stage '") for line in lines)
    return StageRun(stage, round(time.monotonic() - started_s, 3), skipped)


def _timeout_error(stage: str, limit_s: float) -> StageTimeoutError:
    problem = f"it took longer than nightly.stage_timeout_minutes ({limit_s / 60:g}), expected less"
    return StageTimeoutError(
        stage, problem, "What it kept is kept: gleaner run goes on from there, or raise the limit."
    )
