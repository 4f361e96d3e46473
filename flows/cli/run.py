"""Commands ``gleaner run``, ``demo`` and ``schedule``: run rounds now, or by schedule.

The command line opens a run with ``flows.run_context.prepared_run``, starts the flow, and shows what it logs.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.cli.options import WorkspaceOption
from flows.monitoring.json_logging import LogFormat, is_json_logging, set_log_format
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import has_prefect_server, prepare_environment
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.runtime.imports import import_without_gc

_LAST_DEMO_ROUND = 2
_out = SafeConsole()


class NoServerError(UserError):
    """No Prefect server that can keep a schedule."""

    exit_code = 1


LogOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log",
        help="json: one JSON object a line.",
        show_default="GLEANER_LOG_FORMAT, or text",
        callback=set_log_format,
    ),
]


def run(
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds to run.")] = 1,
    workspace: WorkspaceOption = Path(),
    log: LogOption = None,
) -> None:
    """Run nightly rounds: collect labels, derive, publish, offer the next batch.

    An interrupted run resumes where it stopped. With --rounds, it stops early when no labels come back or no image is
    left to label.
    """
    _run_flow(workspace, lambda root: _run_rounds(root, rounds))


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo campaign.")] = Path("demo"),
) -> None:
    """Draw a data set from real pixels and run a campaign of three rounds on it.

    An interrupted demo continues where it stopped.
    """
    prepare_environment(directory)
    from flows.cli.init import prepare_demo
    from flows.workspace.rounds import last_published_round

    prepare_demo(directory)
    workspace = Workspace(directory.resolve())
    remaining = _LAST_DEMO_ROUND - last_published_round(workspace)
    if remaining > 0:
        _run_flow(directory, lambda root: _run_rounds(root, remaining))
    else:
        _print_rounds(workspace)
        _print_locations(workspace)


def _run_flow(folder: Path, start_flow: Callable[[Path], object]) -> None:
    """Open the run, start a Prefect server where the user has none, and run the flow."""
    prepare_environment(folder)
    from flows.run_context import prepared_run

    with prepared_run(folder) as workspace:
        from flows.prefect_server import ensure_prefect_api

        ensure_prefect_api(workspace.root, meanwhile=_import_flow)
        from flows.monitoring.progress import live_progress
        from flows.runtime.retries import translate_service_errors

        with live_progress(_out, lambda _: _print_rounds(workspace)), translate_service_errors("Prefect"):
            start_flow(workspace.root)
    _print_locations(workspace)


def _import_flow() -> None:
    """Import Prefect, MLflow and the flow, which takes seconds of a core, as the server's start does.

    It also sets up Prefect's logging, which `live_progress` changes.
    """
    import_without_gc("flows.nightly")


def _run_rounds(root: Path, rounds: int) -> None:
    from flows.nightly import nightly, run_rounds

    if rounds == 1:
        nightly(root)
    else:
        run_rounds(root, rounds)


def _print_rounds(workspace: Workspace) -> None:
    from flows.cli.status import rounds_table
    from flows.workspace.rounds import all_ledgers

    if not is_json_logging():
        _out.print(rounds_table(all_ledgers(workspace)))


def _print_locations(workspace: Workspace) -> None:
    if is_json_logging():
        return
    _out.print(f"Report: {workspace.derived('report') / 'report.html'}", soft_wrap=True)
    if "MLFLOW_TRACKING_URI" not in os.environ:  # users know their own server, and its address may hold a password
        _out.print(f"MLflow: {workspace.root / 'mlflow.db'}", soft_wrap=True)


def schedule(
    campaigns: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CAMPAIGN]...", help="Folders of campaigns.", show_default="the current folder"),
    ] = None,
    cron: Annotated[str, typer.Option(help="Start times, five fields as in crontab.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of --cron.")] = "UTC",
) -> None:
    """Run one or more campaigns by schedule, side by side, until stopped.

    Needs a Prefect server (make services-up, or prefect server start) whose URL is in PREFECT_API_URL. The campaigns
    take turns on the GPU. For workers, containers and Kubernetes, see prefect.yaml.
    """
    roots = _campaign_roots(campaigns or [Path()])
    prepare_environment(roots[0])
    _require_prefect_server()
    from flows.scheduling import cron_schedule, run_schedules

    when = cron_schedule(cron, timezone)
    console = SafeConsole()
    for root in roots:
        console.print(f"{escape(root.name)}: runs at '{escape(cron)}' {escape(timezone)}", soft_wrap=True)
    run_schedules(roots, when)


def _campaign_roots(folders: Sequence[Path]) -> list[Path]:
    """Return the root of each campaign once; their folder names must differ."""
    from flows.workspace.run_lock import require_workspace

    roots = list(dict.fromkeys(require_workspace(folder).root for folder in folders))
    name, count = Counter(root.name for root in roots).most_common(1)[0]
    if count > 1:
        fix = "A deployment is named after its campaign's folder. Rename one, or use another Prefect server for it."
        raise UserError("campaigns", f"{count} folders are named {name!r}, expected different names", fix)
    return roots


def _require_prefect_server() -> None:
    """Require a permanent server: with a temporary one no run would ever start, without a message."""
    if not has_prefect_server():
        problem = "the variable is not set, expected the URL of a running Prefect server"
        fix = "Start one (make services-up, or prefect server start) and set that variable."
        raise NoServerError("PREFECT_API_URL", problem, fix)
    from flows.scheduling import server_problem

    health_problem = server_problem()
    if health_problem:
        raise NoServerError(
            "Prefect server", f"the health check failed ({health_problem}), expected success", "Is it running?"
        )
