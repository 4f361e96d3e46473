"""What a night costs beside the work of its stages: Prefect, DVC, git, MLflow, hand-over.

Run: ``make bench``. Real nights of a tiny campaign, with MLflow and Prefect in the workspace as for a single user;
the stages that need torch are replaced, which changes nothing about what stands around them. A stage's own time is
that of its command, start of Python included.
"""

import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.data.paths import STAGES, Workspace

_RUNS = 3
_MAX_OVERHEAD_S = 3.0


@dataclass(frozen=True)
class RunTiming:
    """Seconds of one night."""

    total_s: float
    commands_s: dict[str, float]
    """The stages' own commands."""
    tasks_s: dict[str, float]
    """The same with DVC around them."""

    @property
    def overhead_s(self) -> float:
        """All that is not a stage's command, per stage."""
        return (self.total_s - sum(self.commands_s.values())) / len(STAGES)


def instrument_stage_commands(workspace: Workspace) -> None:
    """Let bash write down how long each stage's command takes; the command's last word is the stage."""
    from flows.workspace import git

    times = workspace.root / ".gleaner" / "bench"
    times.mkdir(parents=True, exist_ok=True)
    timed_command = rf"cmd: 'TIMEFORMAT=%R; {{ time \1 2>&1 ; }} 2> {times}/\2'"
    text = re.sub(r"cmd: (python .*?(\w+))$", timed_command, workspace.dvc_yaml.read_text(), flags=re.MULTILINE)
    workspace.dvc_yaml.write_text(text)
    git.commit(workspace, "Time the commands of the stages")


def time_run(workspace: Workspace) -> RunTiming:
    """One real night."""
    from flows.nightly import nightly
    from flows.workspace.rounds import stage_seconds

    times = {stage: workspace.root / ".gleaner" / "bench" / stage for stage in STAGES}
    for path in times.values():
        path.unlink(missing_ok=True)  # a stage that is skipped tonight writes none
    started_s = time.perf_counter()
    result = nightly(workspace.root)
    total_s = time.perf_counter() - started_s
    commands_s = {stage: float(path.read_text().split()[-1]) if path.exists() else 0.0 for stage, path in times.items()}
    return RunTiming(total_s, commands_s, stage_seconds(workspace, result.round_number))


def print_table(timings: Sequence[RunTiming], server_s: float, console: Console) -> None:
    """Print the table and the figure."""
    table = Table("stage", "command s", "DVC and Prefect s", title=f"Medians of {len(timings)} nights")
    for stage in STAGES:
        command_s = statistics.median(timing.commands_s[stage] for timing in timings)
        overhead_s = statistics.median(timing.tasks_s[stage] - timing.commands_s[stage] for timing in timings)
        table.add_row(stage, f"{command_s:.2f}", f"{overhead_s:.2f}")
    rest_s = statistics.median(timing.total_s - sum(timing.tasks_s.values()) for timing in timings)
    total_s = statistics.median(timing.total_s for timing in timings)
    table.add_section()
    table.add_row("collect, publish, push, deliver and the flow itself", "", f"{rest_s:.2f}")
    table.add_row(
        "whole night",
        f"{statistics.median(sum(timing.commands_s.values()) for timing in timings):.2f}",
        f"{total_s:.2f}",
    )
    console.print(table)
    overheads_s = [timing.overhead_s for timing in timings]
    console.print(
        f"overhead per stage: median {statistics.median(overheads_s):.2f} s "
        f"(min {min(overheads_s):.2f}, max {max(overheads_s):.2f}), bar {_MAX_OVERHEAD_S:.0f} s; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    ratio = total_s / statistics.median(sum(timing.commands_s.values()) for timing in timings)
    console.print(
        f"whole night / sum of its stages: {ratio:.2f}, with stages this small; "
        f"a private Prefect server, where none is named, takes {server_s:.1f} s before the night"
    )


def main() -> None:
    """Make a campaign, run nights, print."""
    from flows.prefect_server import ensure_prefect_api
    from flows.runtime.process_env import prepare_environment

    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
        for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        os.environ["PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL"] = "WARNING"
        os.environ["PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL"] = "WARNING"
        prepare_environment(Path(folder))
        from tests.flows.small_campaign import REPOSITORY, make_small_campaign

        os.environ["PYTHONPATH"] = str(REPOSITORY)
        workspace = make_small_campaign(Path(folder))
        instrument_stage_commands(workspace)
        started_s = time.perf_counter()
        ensure_prefect_api(workspace.root)
        server_s = time.perf_counter() - started_s
        print_table([time_run(workspace) for _ in range(_RUNS)], server_s, Console())


if __name__ == "__main__":
    main()
