"""Check the schedule: an active deployment, a planned run, and a worker or runner for it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.preflight.context import CheckContext
from flows.preflight.result import Finding, failed, passed, warned
from flows.runtime.process_env import has_prefect_server, redact

_HEARTBEAT_TIMEOUT = timedelta(minutes=2)  # workers and served flows report every 10 to 30 s
_START_HINT = "Start it: prefect worker start --pool POOL, or gleaner schedule."


def check_schedule(context: CheckContext) -> Finding:
    """Check that Prefect's server has an active deployment with a planned run of this campaign."""
    if not has_prefect_server():
        return warned(
            "no Prefect server is named: nights run when somebody, or cron, starts gleaner run",
            "Fine with cron. Otherwise set PREFECT_API_URL and deploy; docs/operations.md says how.",
        )
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        try:
            client.api_healthcheck()
            deployments = [
                found for found in client.read_deployments(limit=200) if _is_for_campaign(found, context.workspace.root)
            ]
            return _deployment_status(client, deployments)
        except Exception as error:  # httpx, Prefect and validation errors alike: the server does not do its part
            message = redact((str(error).splitlines() or [type(error).__name__])[0])
            return failed(
                f"Prefect's server does not answer ({message})",
                "Start it, or correct PREFECT_API_URL and PREFECT_API_KEY.",
            )


def _is_for_campaign(deployment: Any, root: Path) -> bool:
    """Tell whether a deployment runs this campaign."""
    root_parameter = deployment.parameters.get("root")
    return isinstance(root_parameter, str) and Path(root_parameter).resolve() == root.resolve()


def _deployment_status(client: Any, deployments: list[Any]) -> Finding:
    if not deployments:
        return warned("Prefect knows no deployment of this campaign", "Deploy it; docs/operations.md says how.")
    active = [found for found in deployments if not found.paused and any(s.active for s in found.schedules)]
    if not active:
        names = ", ".join(found.name for found in deployments)
        return warned(f"no schedule of {names} is active", "Switch it on: prefect deployment schedule ls DEPLOYMENT.")
    deployment = active[0]
    problem = _worker_problem(client, deployment)
    if problem:
        return failed(problem, _START_HINT)
    planned = _next_run(client, deployment)
    if planned is None:
        fix = "Restart Prefect's server and look for errors of its scheduler; SQLAlchemy 2.1 stops it without a word."
        return failed(f"the schedule of {deployment.name} is active and nothing is planned", fix)
    return passed(f"{deployment.name}: next night at {planned.isoformat(timespec='minutes')}, and somebody to run it")


def _worker_problem(client: Any, deployment: Any) -> str | None:
    """Return the problem of the worker or runner of the deployment; empty if there is none."""
    if deployment.work_pool_name is None:  # gleaner schedule
        last_polled = deployment.last_polled
        return (
            None
            if _is_recent(last_polled)
            else f"nobody serves {deployment.name} (last seen: {last_polled or 'never'})"
        )
    pool = deployment.work_pool_name
    workers = client.read_workers_for_work_pool(pool)
    if any(_is_recent(worker.last_heartbeat_time) for worker in workers):
        return None
    return f"no worker of the pool {pool} has polled in the last {_HEARTBEAT_TIMEOUT.seconds // 60} minutes"


def _is_recent(moment: datetime | None) -> bool:
    return moment is not None and datetime.now(UTC) - moment < _HEARTBEAT_TIMEOUT


def _next_run(client: Any, deployment: Any) -> datetime | None:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    planned = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return planned[0].expected_start_time if planned else None
