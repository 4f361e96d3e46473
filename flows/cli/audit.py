"""``gleaner audit``."""

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.provenance.audit.findings import Check

_EXIT_FAILED = 1
_STYLES = {"pass": "green", "fail": "red", "skip": "yellow"}


def audit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="As name@champion, name/3 or round-0003; its round and all before.",
            show_default="all rounds, and the workspace with them",
        ),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Measure the stored weights of the model once more; takes minutes.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Prove that nothing was altered: every digest is worked out again from the stored bytes.

    Exit code 1 when anything is not as recorded; each such thing is named.
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
            on_check=lambda done: status.update(f"{done.area}: {done.name} {done.result}"),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_document(checks), indent=2, ensure_ascii=False))
    else:
        _print_table(checks, console)
    if any(check.result == "fail" for check in checks):
        raise typer.Exit(_EXIT_FAILED)


def _document(checks: "Sequence[Check]") -> dict[str, object]:
    rows = [
        {"area": check.area, "check": check.name, "result": check.result, "examined": check.examined,
         "findings": list(check.findings), "skipped": check.skipped}
        for check in checks
    ]  # fmt: skip
    return {"passed": all(check.result != "fail" for check in checks), "checks": rows}


def _print_table(checks: "Sequence[Check]", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for header in ("", "check", "examined", "result"):
        table.add_column(header)
    area = ""
    for check in checks:
        result = f"[{_STYLES[check.result]}]{check.result}[/]"
        table.add_row(check.area if check.area != area else "", check.name, check.skipped or check.examined, result)
        area = check.area
    console.print(table)
    findings = [finding for check in checks for finding in check.findings]
    for finding in findings:
        console.print(escape(finding), style="red", soft_wrap=True, highlight=False)
    skipped = sum(check.result == "skip" for check in checks)
    summary = f"{len(findings)} findings" if findings else "Nothing was altered"
    console.print(f"{summary}: {len(checks) - skipped} checks done, {skipped} skipped.", highlight=False)
