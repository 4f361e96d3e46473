"""Command ``gleaner audit``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, WorkspaceOption
from flows.runtime.process_env import prepare_environment
from tasks.runtime.formatting import pluralize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.provenance.audit import Check

_EXIT_FAILED = 1
_STYLES = {"pass": "green", "fail": "red", "skip": "yellow"}


def audit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="name@champion, name/3 or round-0003: audit its round and all earlier ones.",
            show_default="all rounds, and the workspace",
        ),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also evaluate the stored weights of the model; takes minutes.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Compare everything that is stored with the digests in the ledgers.

    Every digest is computed from the stored bytes. Lists every difference; the exit code is then 1.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.provenance.audit.run import run_audit
    from flows.provenance.snapshot import resolve_model_ref

    console = Console()
    number = None if model is None else resolve_model_ref(campaign, model)
    with console.status("auditing ...") as status:
        checks = run_audit(
            campaign, number, recompute=recompute,
            on_check=lambda done: status.update(f"{done.area}: {done.name} {done.state}"),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_document(checks), indent=2, ensure_ascii=False))
    else:
        _print_table(checks, console)
    if not _passed(checks):
        raise typer.Exit(_EXIT_FAILED)


def _passed(checks: "Sequence[Check]") -> bool:
    return all(check.state != "fail" for check in checks)


def _document(checks: "Sequence[Check]") -> dict[str, object]:
    rows = [
        {"area": check.area, "name": check.name, "state": check.state, "examined": check.examined,
         "findings": list(check.findings), "skip_reason": check.skip_reason}
        for check in checks
    ]  # fmt: skip
    return {"state": "pass" if _passed(checks) else "fail", "checks": rows}


def _print_table(checks: "Sequence[Check]", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("area", "check", "examined", "state"):
        table.add_column(header)
    area = ""
    for check in checks:
        state = f"[{_STYLES[check.state]}]{check.state}[/]"
        table.add_row(check.area if check.area != area else "", check.name, check.skip_reason or check.examined, state)
        area = check.area
    console.print(table)
    findings = [finding for check in checks for finding in check.findings]
    for finding in findings:
        console.print(escape(finding), style="red", soft_wrap=True, highlight=False)
    num_skipped = sum(check.state == "skip" for check in checks)
    summary = pluralize(len(findings), "finding") if findings else "Nothing was altered"
    counts = f"{pluralize(len(checks) - num_skipped, 'check')} done, {num_skipped} skipped"
    console.print(f"{summary}: {counts}.", highlight=False)
