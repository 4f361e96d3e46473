"""``gleaner doctor``: check everything a run needs, and show how to correct what fails."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, TrustOption, WorkspaceOption, look_at
from flows.preflight.runner import CheckResult
from flows.runtime.masking import SafeConsole
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_STYLE = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_EXIT_FAILED = 1


def doctor(
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the checks that every run begins with; they change nothing.")
    ] = False,
    trust_campaign: TrustOption = False,
) -> None:
    """Check everything a run needs: data, detector, machine, git, DVC remote, MLflow, annotators, schedule.

    Where no check fails, it also measures a few steps of the detector and says how long a night will take. Writes,
    reads and deletes a small object of its own in the DVC remote and in MLflow. Exit code 1 where a check fails.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    from flows.preflight.checks import CHECKS
    from flows.preflight.runner import CheckContext, run_checks

    console = SafeConsole(stderr=as_json)
    with console.status("checking everything a run needs"):
        results = run_checks(CheckContext(campaign), [check for check in CHECKS if check.quick or not quick])
    if not as_json:
        _print_table(console, results)
    night = None if quick or _exit_code(results) else _estimate_night(campaign, console, as_json=as_json)
    if as_json:
        document = {**_document(campaign, results), "night": night}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    if any(result.timed_out for result in results):
        os._exit(_exit_code(results))  # a check that hangs must not delay the exit in the clean-up of a library
    raise typer.Exit(_exit_code(results))


def _estimate_night(campaign: Workspace, console: Console, *, as_json: bool) -> dict[str, Any] | None:
    from flows.preflight.services import describe_night, estimate_night

    try:
        with console.status("measuring a few steps of training and inference"):
            estimate = estimate_night(campaign)
    except UserError as error:
        console.print(f"How long a night takes is not known: {escape(error.problem)}", style="yellow", soft_wrap=True)
        return None
    if not as_json:
        console.print("\nA night will take about:", highlight=False)
        for line in describe_night(estimate):
            console.print(escape(line), soft_wrap=True, highlight=False)
    return estimate


def _exit_code(results: list[CheckResult]) -> int:
    return _EXIT_FAILED if any(result.finding.state == "fail" for result in results) else 0


def _document(campaign: Workspace, results: list[CheckResult]) -> dict[str, Any]:
    states = [result.finding.state for result in results]
    return {
        "campaign": str(campaign.root),
        "state": next(state for state in ("fail", "warn", "pass") if state in states),
        "checks": [
            {
                "name": answer.name,
                "state": answer.finding.state,
                "message": answer.finding.message,
                "fix": answer.finding.fix,
                "seconds": answer.seconds,
            }
            for answer in results
        ],
    }


def _print_table(console: Console, results: list[CheckResult]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for header in ("check", "", "found, and what to do"):
        table.add_column(header, overflow="fold")
    for result in results:
        state = result.finding.state
        message = escape(result.finding.message)
        if result.finding.fix:
            message += f"\n[dim]> {escape(result.finding.fix)}[/dim]"
        table.add_row(result.name, f"[{_STYLE[state]}]{state}[/]", message)
    console.print(table)
    counts = [f"{sum(a.finding.state == state for a in results)} {state}" for state in ("pass", "warn", "fail")]
    console.print(", ".join(counts))
