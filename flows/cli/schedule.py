"""``gleaner schedule``: nights by schedule, for teams that run no Prefect worker."""

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
    """There is no Prefect server that could keep a schedule."""

    exit_code = 1


def schedule(
    campaigns: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CAMPAIGN]...", help="Folders of campaigns.", show_default="the current folder"),
    ] = None,
    cron: Annotated[str, typer.Option(help="When nights begin, as in crontab.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of --cron.")] = "UTC",
) -> None:
    """Run the nights of one or more campaigns by schedule, side by side, until stopped.

    Needs a Prefect server (make services-up, or prefect server start) named by PREFECT_API_URL. The campaigns take turns
    on the GPU. For workers, containers and Kubernetes, see prefect.yaml.
    """
    roots = _campaign_roots(campaigns or [Path()])
    prepare_environment(roots[0])
    _require_prefect_server()
    from flows.scheduling import cron_schedule, run_schedules

    when = cron_schedule(cron, timezone)
    console = Console()
    for root in roots:
        console.print(f"{escape(root.name)}: nights at '{escape(cron)}' {escape(timezone)}", soft_wrap=True)
    run_schedules(roots, when)


def _campaign_roots(folders: Sequence[Path]) -> list[Path]:
    """Their roots, each once, each with a name of its own."""
    from flows.workspace.run_lock import require_workspace

    roots = list(dict.fromkeys(require_workspace(folder).root for folder in folders))
    name, count = Counter(root.name for root in roots).most_common(1)[0]
    if count > 1:
        fix = "A deployment is called after its campaign's folder: rename one, or give it a server of its own."
        raise UserError("campaigns", f"the folders called {name!r} are {count}, expected different names", fix)
    return roots


def _require_prefect_server() -> None:
    """A temporary server can not schedule: nights would silently never begin."""
    if not has_prefect_server():
        problem = "the value is missing, expected a running Prefect server"
        fix = "Start one (make services-up, or prefect server start) and name it in that variable."
        raise NoServerError("PREFECT_API_URL", problem, fix)
    from flows.scheduling import server_problem

    health_problem = server_problem()
    if health_problem:
        raise NoServerError(
            "Prefect server", f"the answer is {health_problem}, expected it to be healthy", "Is it running?"
        )
