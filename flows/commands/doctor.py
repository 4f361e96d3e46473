"""``gleaner doctor``: tries today what could fail tonight, and says how to mend it."""

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

from flows.commands.options import JsonOption, WorkspaceOption
from flows.doctor.examine import Examined
from flows.environment import prepare_environment
from tasks.paths import Workspace

_STYLE = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_FAILED = 1


def doctor(
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what a night itself tries before it begins; changes nothing anywhere.")
    ] = False,
) -> None:
    """Try everything a night needs: data, detector, machine, git, DVC remote, MLflow, annotators, schedule.

    Writes, reads and deletes a small object of its own in the DVC remote and in MLflow. Exit code 1 where a check
    fails.
    """
    from flows.workspaces import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.doctor.checks import CHECKS
    from flows.doctor.context import Context
    from flows.doctor.examine import examine

    console = Console(stderr=as_json)
    with console.status("trying everything a night needs"):
        answers = examine(Context(campaign), [check for check in CHECKS if check.quick or not quick])
    if as_json:
        sys.stdout.write(json.dumps(_document(campaign, answers), indent=2, ensure_ascii=False) + "\n")
    else:
        _print(console, answers)
    sys.stdout.flush()
    if any(answer.cut_off for answer in answers):
        os._exit(_exit_code(answers))  # a check that hangs must not hold the end up in some library's clean-up
    raise typer.Exit(_exit_code(answers))


def _exit_code(answers: list[Examined]) -> int:
    return _FAILED if any(answer.finding.state == "fail" for answer in answers) else 0


def _document(campaign: Workspace, answers: list[Examined]) -> dict[str, Any]:
    states = [answer.finding.state for answer in answers]
    return {
        "campaign": str(campaign.root),
        "state": next(state for state in ("fail", "warn", "pass") if state in states),
        "checks": [
            {
                "name": answer.name,
                "state": answer.finding.state,
                "what": answer.finding.what,
                "fix": answer.finding.fix,
                "seconds": answer.seconds,
            }
            for answer in answers
        ],
    }


def _print(console: Console, answers: list[Examined]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for header in ("check", "", "found, and what to do"):
        table.add_column(header, overflow="fold")
    for answer in answers:
        state = answer.finding.state
        found = escape(answer.finding.what)
        if answer.finding.fix:
            found += f"\n[dim]> {escape(answer.finding.fix)}[/dim]"
        table.add_row(answer.name, f"[{_STYLE[state]}]{state}[/]", found)
    console.print(table)
    counts = [f"{sum(a.finding.state == state for a in answers)} {state}" for state in ("pass", "warn", "fail")]
    console.print(", ".join(counts))
