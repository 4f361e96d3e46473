"""``gleaner schedule``: run campaigns by schedule, for teams without a Prefect worker."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.runtime.process_env import has_prefect_server, prepare_environment
from tasks.runtime.errors import UserError


class NoServerError(UserError):
    """No Prefect server that can keep a schedule."""

    exit_code = 1


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
    console = Console()
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
