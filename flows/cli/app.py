"""The command ``gleaner``."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from flows.cli.audit import audit
from flows.cli.doctor import doctor
from flows.cli.gc import gc
from flows.cli.import_check import import_
from flows.cli.init import init
from flows.cli.lineage import lineage
from flows.cli.options import WorkspaceOption
from flows.cli.pool import pool
from flows.cli.promote import promote, rollback
from flows.cli.quarantine import quarantine
from flows.cli.reproduce import reproduce
from flows.cli.schedule import schedule
from flows.cli.study import study
from flows.monitoring.json_logging import (
    LogFormat,
    is_json_logging,
    is_json_logging_unchecked,
    json_error_line,
    set_log_format,
)
from flows.runtime.process_env import prepare_environment
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="gleaner",
    help="Nightly active-learning rounds for object detection: selects the images whose labels should help most, and "
    "learns from the rest without labels.",
    epilog="Exit codes: 0 done, 1 a stage or a service failed, 2 something to correct (named in one line), "
    "3 training diverged, 4 out of memory, 5 disk full, 6 object store out of reach, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_out = Console()
_err = Console(stderr=True)


LogOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log",
        help="json: one JSON object a line.",
        show_default="GLEANER_LOG_FORMAT, or text",
        callback=set_log_format,
    ),
]


def main() -> None:
    """Run the command line: a user's mistake ends in one line on stderr and an exit code of its kind."""
    handler = RichHandler(console=_err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.captureWarnings(True)  # warnings of libraries are for developers; MLflow prints some in spite of the filter
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _EXIT_INTERRUPTED:
            _print_error("Interrupted. The same command goes on from here.")
        raise


app.command()(init)
app.command("import")(import_)


@app.command()
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


@app.command()
def status(workspace: WorkspaceOption = Path()) -> None:
    """Show the rounds so far, what is with the annotators, what was refused, and what comes next."""
    from flows.cli.status import print_status
    from flows.workspace.run_lock import require_workspace

    print_status(require_workspace(workspace), _out)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo campaign.")] = Path("demo"),
) -> None:
    """Draw a data set from real pixels and run a campaign of three rounds on it.

    An interrupted demo continues where it stopped.
    """
    prepare_environment(directory)
    from flows.cli.demo_campaign import prepare_demo, remaining_rounds

    prepare_demo(directory)
    remaining = remaining_rounds(Workspace(directory.resolve()))
    if remaining > 0:
        _run_flow(directory, lambda root: _run_rounds(root, remaining))
    else:
        _print_rounds(Workspace(directory.resolve()))
        _print_locations(Workspace(directory.resolve()))


def _run_flow(folder: Path, start_flow: Callable[[Path], object]) -> None:
    """Check what can be checked quickly before a server is started, then start the flow."""
    from flows.monitoring.notifications import notify_on_failure
    from flows.workspace.run_lock import require_workspace

    workspace = require_workspace(folder)
    prepare_environment(workspace.root)
    with notify_on_failure(workspace):
        _require_ready(workspace)
        from flows.prefect_server import ensure_prefect_api

        ensure_prefect_api(workspace.root)
        import flows.nightly  # noqa: F401 (sets up Prefect's logging, which `live_progress` changes)
        from flows.monitoring.progress import live_progress
        from flows.runtime.retries import translate_service_errors

        with live_progress(_out, lambda _: _print_rounds(workspace)), translate_service_errors("Prefect"):
            start_flow(workspace.root)
    _print_locations(workspace)


def _require_ready(workspace: Workspace) -> None:
    from flows.annotation.providers.base import ProviderError
    from flows.annotation.providers.factory import create_provider
    from flows.preflight.checks import require_ready
    from flows.workspace.run_lock import require_unlocked
    from tasks.params import load_params

    require_ready(workspace)
    with suppress(ProviderError):  # the run reports it, after all that needs no provider
        create_provider(workspace, load_params(workspace.params)).check()
    require_unlocked(workspace)


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


def _print_error(message: str) -> None:
    if is_json_logging_unchecked():
        sys.stdout.write(json_error_line(message) + "\n")
    else:
        _err.print(escape(message), style="red", soft_wrap=True, highlight=False)


# `gleaner --help` shows these after the commands of this file, in this order.
app.command()(doctor)
app.add_typer(quarantine, name="quarantine")
app.add_typer(pool, name="pool")
app.command()(lineage)
app.command()(audit)
app.command()(promote)
app.command()(rollback)
app.command()(reproduce)
app.command()(gc)
app.command()(schedule)
app.command()(study)

if __name__ == "__main__":
    main()
