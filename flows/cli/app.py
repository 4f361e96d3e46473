"""The command ``gleaner``."""

import importlib.metadata
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from flows.cli.autolabel import autolabel
from flows.cli.data import gc, pool, quarantine
from flows.cli.doctor import doctor
from flows.cli.export import export
from flows.cli.init import adopt, import_, init
from flows.cli.options import TrustOption, WorkspaceOption, look_at
from flows.cli.people import people
from flows.cli.promote import promote, rollback
from flows.cli.provenance import audit, lineage, reproduce
from flows.cli.run import demo, run, schedule
from flows.cli.select import select
from flows.cli.shadow import shadow
from flows.cli.study import study
from flows.monitoring.json_logging import is_json_logging_unchecked, json_error_line
from flows.runtime.masking import SafeConsole, install_masking, safe_text
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
_out = SafeConsole()
_err = SafeConsole(stderr=True)


def main() -> None:
    """Run the command line: a user's mistake ends in one line on stderr and an exit code of its kind."""
    install_masking()
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
            _print_error("Interrupted. The same command resumes from here.")
        raise


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        _out.print(f"gleaner {importlib.metadata.version('gleaner')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Options that come before a command. The help text is that of ``app``."""


def status(workspace: WorkspaceOption = Path(), trust_campaign: TrustOption = False) -> None:
    """Show the rounds so far, what is with the annotators, what was refused, and what comes next."""
    from flows.cli.status import print_status
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    print_status(campaign, _out)


def _print_error(message: str) -> None:
    if is_json_logging_unchecked():
        sys.stdout.write(json_error_line(message) + "\n")
    else:
        _err.print(escape(safe_text(message)), style="red", soft_wrap=True, highlight=False)


# `gleaner --help` shows them in this order.
app.command()(init)
app.command("import")(import_)
app.command()(run)
app.command()(status)
app.command()(select)
app.command()(people)
app.command()(autolabel)
app.command()(demo)
app.command()(doctor)
app.add_typer(quarantine, name="quarantine")
app.add_typer(pool, name="pool")
app.command()(lineage)
app.command()(audit)
app.command()(promote)
app.command()(rollback)
app.command()(reproduce)
app.command()(export)
app.command()(shadow)
app.command()(adopt)
app.command()(gc)
app.command()(schedule)
app.command()(study)

if __name__ == "__main__":
    main()
