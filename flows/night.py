"""The nightly round: collect, derive stage by stage, publish, deliver.

Where it begins is read off the files (``flows.position``), so a night that was killed is called again with
the same command, and goes on. It never waits for people: without labels it says so and leaves.
"""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows import vcs
from flows.code_digests import refresh_code_digests
from flows.collect import Collected, collect, settle
from flows.deliver import Delivered, deliver
from flows.deliveries import read_delivery
from flows.position import NightResult, is_published, newest_round
from flows.providers.base import Delivery, LabelProvider
from flows.providers.choose import choose_provider
from flows.publish import Published, PublishError, publish, push
from flows.stage import reproduce
from flows.workspaces import night_lock, require_workspace
from tasks.errors import UserError
from tasks.params import Params, load_params
from tasks.paths import STAGES, Workspace


def _may_pass(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """A server that is away comes back; what a user has to mend does not mend itself."""
    return not isinstance(state.result(raise_on_failure=False), UserError)


_ATTEMPTS_AGAIN = 2
_DELAYS_S: list[float] = [5, 30]


def campaign_name() -> str:
    """What the flow run is called: the campaign's folder."""
    return Path(flow_run.parameters["root"]).name


@flow(name="night", flow_run_name=campaign_name)
def night(root: Path) -> NightResult:
    """Bring the campaign in ``root`` one round further, or to the end of the round that was cut off.

    Raises:
        UserError: something a person has to mend; says what, and how.
    """
    workspace = require_workspace(root)
    with night_lock(workspace):
        vcs.require_branch(workspace.root)
        params = load_params(workspace.params)
        provider = choose_provider(workspace, params)
        provider.check()
        number = newest_round(workspace)
        settle(workspace, number)
        if is_published(workspace, number):
            delivery = read_delivery(workspace, number + 1)
            if delivery is None or delivery.state == "prepared":  # the last night was cut off right there
                return _hand_over(workspace, provider, number)
            collected = collect_labels(workspace, provider, params, delivery)
            if not collected.images:
                return NightResult(number, "waiting", collected.message)
            number += 1
        return _round(workspace, provider, params, number)


def _round(workspace: Workspace, provider: LabelProvider, params: Params, number: int) -> NightResult:
    """Derive, publish and deliver round ``number``, whose labels are there."""
    log = get_run_logger()
    refresh_code_digests(workspace)
    log.info("round %d", number, extra={"gleaner_round": number})
    for stage in STAGES:
        reproduce(workspace.root, stage, number)
    published = _publish(workspace, params, number)
    log.info("%s", published.message, extra={"gleaner_published": number})
    _push(workspace)
    return _hand_over(workspace, provider, number)


def _publish(workspace: Workspace, params: Params, number: int) -> Published:
    try:
        return publish_round(workspace, params, number)
    except MlflowException as error:
        said = str(error).splitlines()[0]
        fix = "The round is derived and safe: gleaner night goes on from there when MLflow answers."
        raise PublishError(
            "MLflow", f"the answer on round {number} is an error ({said}), expected none", fix
        ) from error


def _hand_over(workspace: Workspace, provider: LabelProvider, number: int) -> NightResult:
    delivered = deliver_batch(workspace, provider, number)
    get_run_logger().info("%s", delivered.message)
    return NightResult(number, "finished" if delivered.images else "exhausted", delivered.message)


def _push(workspace: Workspace) -> None:
    """The round stands without it; the next night sends what is missing."""
    try:
        push_data(workspace)
    except UserError as error:
        get_run_logger().warning("The data of this round was not pushed: %s The next night tries again.", error)


@task(
    name="collect",
    task_run_name="collect",
    retries=_ATTEMPTS_AGAIN,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def collect_labels(workspace: Workspace, provider: LabelProvider, params: Params, delivery: Delivery) -> Collected:
    """Fetch finished labels."""
    collected = collect(workspace, provider, params, delivery)
    get_run_logger().info("%s", collected.message)
    return collected


@task(
    name="publish",
    task_run_name="publish",
    retries=_ATTEMPTS_AGAIN,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def publish_round(workspace: Workspace, params: Params, number: int) -> Published:
    """MLflow, ledger, commit and tag."""
    return publish(workspace, params, number)


@task(
    name="push",
    task_run_name="push",
    retries=_ATTEMPTS_AGAIN,
    retry_delay_seconds=_DELAYS_S,
    cache_policy=NO_CACHE,
)
def push_data(workspace: Workspace) -> bool:
    """Send data to the default DVC remote, where there is one."""
    return push(workspace)


@task(
    name="deliver",
    task_run_name="deliver",
    retries=_ATTEMPTS_AGAIN,
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def deliver_batch(workspace: Workspace, provider: LabelProvider, number: int) -> Delivered:
    """Offer the next batch."""
    return deliver(workspace, provider, number)
