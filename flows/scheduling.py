"""Run campaigns by schedule: one Prefect deployment per campaign, one concurrency limit for the GPU they share.

``prefect.yaml`` configures the same for teams with workers.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, TerminationSignal
from prefect.runner import Runner
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.nightly import nightly
from flows.runtime.gpu_lock import CONCURRENCY_LIMIT_NAME
from flows.runtime.subprocess import GRACE_S
from tasks.runtime.errors import UserError

_TAG = "gleaner"
_STATE_REPORT_S = 10.0
"""Time for a run that was terminated to report its state to Prefect."""
_POLL_S = 0.2
_CRON_FIELDS = 5
_CRON_FIX = "As in crontab: '0 2 * * *' is every night at 2:00."
_MACHINE_TIMEZONES = {"localtime", "posixrules", "Factory"}
"""Names whose meaning depends on the machine; the Prefect server may run on another one."""


def cron_schedule(cron: str, timezone: str) -> CronSchedule:
    """Return the schedule of a cron line; the time zone decides about daylight saving.

    Raises:
        UserError: not a cron line of five fields, one that never fires, or an unknown time zone.
    """
    require_timezone(timezone)
    if len(cron.split()) != _CRON_FIELDS and not cron.startswith("@"):
        # Of six fields Prefect takes the last one for seconds, and fires at each of them.
        raise _cron_error(cron, f"{len(cron.split())} fields")
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise _cron_error(cron, str(error.errors()[0]["msg"]).splitlines()[0]) from None
    try:
        dates = asyncio.run(ServerCronSchedule(cron=cron, timezone=timezone).get_dates(1))
    except ValueError:  # croniter's, which Prefect ships inside and does not publish
        dates = []
    if not dates:
        raise UserError("--cron", f"the value is {cron!r}, which never fires, expected a date that exists", _CRON_FIX)
    return schedule


def _cron_error(cron: str, reason: str) -> UserError:
    return UserError("--cron", f"the value is {cron!r} ({reason}), expected five fields", _CRON_FIX)


def require_timezone(name: str) -> tzinfo:
    """Return the time zone of that name.

    Raises:
        UserError: the system has no such zone, or it means another one on every machine.
    """
    known = available_timezones() - _MACHINE_TIMEZONES
    if name in known:
        return ZoneInfo(name)
    close = {zone.casefold(): zone for zone in known}.get(name.casefold(), "Europe/Berlin or UTC")
    fix = f"Use a name such as {close}."
    raise UserError("--timezone", f"the value is {name!r}, expected a time zone of this system", fix)


def deployment_for(root: Path, schedule: CronSchedule) -> RunnerDeployment:
    """Return the deployment of one campaign, named after its folder.

    A run that is due while the previous one is running is cancelled: started right after a long one, it would find
    hardly a new label. After a crash the next run can start within five minutes.
    """
    deployment = nightly.to_deployment(
        name=root.name,
        parameters={"root": str(root)},
        schedules=[schedule],
        tags=[_TAG],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # it would be a coroutine inside of an event loop
    return deployment


def server_problem() -> str:
    """Return the error of the configured Prefect server; empty where it is healthy."""
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        return f"{error} ({client.api_url})" if error else ""


def ensure_gpu_concurrency_limit() -> None:
    """Create the limit of one campaign at a time on the GPU; a limit that the server has is kept."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(CONCURRENCY_LIMIT_NAME)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=CONCURRENCY_LIMIT_NAME, limit=1)
                )
            except ObjectAlreadyExists:  # another process was faster
                return


class ScheduleRunner(Runner):
    """Prefect's runner with another reaction to SIGTERM: Prefect's waits for active runs, however long they take."""

    def handle_sigterm(self, *arguments: Any, **options: Any) -> None:
        """Terminate the active runs, wait until their trainings have saved a checkpoint, then exit."""
        children = psutil.Process().children()
        for run_process in children:
            with suppress(psutil.NoSuchProcess):
                run_process.terminate()
        deadline_s = time.monotonic() + GRACE_S + _STATE_REPORT_S
        while any(run_process.is_running() for run_process in children) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)  # a thread of the runner reaps them
        super().handle_sigterm(*arguments, **options)


def run_schedules(roots: Sequence[Path], schedule: CronSchedule) -> None:
    """Start runs by schedule, each in its own process, until this process is stopped.

    The schedules stay active on the server. The next `gleaner schedule` continues them, and starts late what was due
    in between.
    """
    ensure_gpu_concurrency_limit()
    runner = ScheduleRunner(pause_on_shutdown=False)
    for root in roots:
        runner.add_deployment(deployment_for(root, schedule))
    with suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())
