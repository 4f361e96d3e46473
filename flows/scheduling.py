"""What Prefect has to know of campaigns that run by schedule: one deployment each, and the one GPU they share.

``prefect.yaml`` says the same for teams with workers.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, TerminationSignal
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.nightly import nightly
from flows.runtime.gpu_lock import CONCURRENCY_LIMIT_NAME
from flows.runtime.subprocess import GRACE_S
from tasks.runtime.errors import UserError

_TAG = "gleaner"
_STATE_REPORT_S = 10.0
"""For a night that was asked to leave: to tell Prefect so."""
_POLL_S = 0.2


def cron_schedule(cron: str, timezone: str) -> CronSchedule:
    """When nights begin; daylight saving is the time zone's.

    Raises:
        UserError: no cron line, or no time zone of the system's.
    """
    require_timezone(timezone)
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).splitlines()[0]
        fix = "As in crontab: '0 2 * * *' is every night at two."
        raise UserError("--cron", f"the value is {cron!r} ({message}), expected five fields", fix) from None


def require_timezone(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        UserError: the system knows none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        fix = "Use a name such as Europe/Berlin or UTC."
        raise UserError("--timezone", f"the value is {name!r}, expected a time zone of this system", fix) from None


def deployment_for(root: Path, schedule: CronSchedule) -> RunnerDeployment:
    """The deployment of one campaign, called after its folder.

    A night that is still at work when the next is due is left alone, and the next is cancelled: started right
    after a long one, it would find hardly a new label. A crash frees the place within five minutes.
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
    """What is wrong with the Prefect server that is configured; empty where it is healthy."""
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        return f"{error} ({client.api_url})" if error else ""


def ensure_gpu_concurrency_limit() -> None:
    """Let one campaign at a time compute on the GPU, unless somebody has decided otherwise on the server."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(CONCURRENCY_LIMIT_NAME)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=CONCURRENCY_LIMIT_NAME, limit=1)
                )
            except ObjectAlreadyExists:  # another serve was faster
                return


class ScheduleRunner(Runner):
    """Prefect's own runner, but for SIGTERM: it would wait for the nights at work, however long they take."""

    def handle_sigterm(self, *arguments: Any, **options: Any) -> None:
        """Ask the nights at work to leave, give their trainings the time to keep a checkpoint, then leave."""
        children = psutil.Process().children()
        for night_process in children:
            with suppress(psutil.NoSuchProcess):
                night_process.terminate()
        deadline_s = time.monotonic() + GRACE_S + _STATE_REPORT_S
        while any(night_process.is_running() for night_process in children) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)  # a thread of the runner's own buries them
        super().handle_sigterm(*arguments, **options)


def run_schedules(roots: Sequence[Path], schedule: CronSchedule) -> None:
    """Start nights by schedule, in processes of their own, until this one is stopped.

    The schedules stay active on the server: whoever serves next takes them up, and what fell into the gap is late,
    not lost.
    """
    ensure_gpu_concurrency_limit()
    runner = ScheduleRunner(pause_on_shutdown=False)
    for root in roots:
        runner.add_deployment(deployment_for(root, schedule))
    with suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())
