"""The nightly round: collect, derive stage by stage, publish, deliver.

Where it begins is read off the files (``flows.workspace.state``), so a night that was killed is called again with
the same command, and goes on. It never waits for people: without labels it says so and leaves. Nor does it wait
for a label provider that is away: what needs no labels is done, and the end of the night says what is wrong.

Several nights in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.annotation.batches import offered_annotation_batches
from flows.annotation.collect import CollectionResult, collect, finalize_collection
from flows.annotation.deliver import CAMPAIGN_COMPLETE, DeliveryResult, deliver, has_pending_delivery
from flows.annotation.leases import num_open
from flows.annotation.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.annotation.providers.factory import create_provider
from flows.registry.publish import PublishError, PublishResult, publish, push
from flows.run_hooks import after_publish, monitored
from flows.runtime.cancellation import mark_cancelled, watch_for_cancellation
from flows.runtime.retries import retrying_task
from flows.runtime.service_errors import translate_service_errors
from flows.stage_runner import run_stage
from flows.tracking.crashed_runs import close_crashed_runs, record_flow_runs
from flows.workspace.code_version import refresh_code_digests
from flows.workspace.run_lock import require_workspace, run_lock
from flows.workspace.state import RunResult, is_published, last_published_round, newest_round
from tasks.data.paths import STAGES, Workspace
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError


def campaign_name() -> str:
    """What the flow run is called: the campaign's folder."""
    return Path(flow_run.parameters["root"]).name


@dataclass(frozen=True)
class RunContext:
    """What all parts of a night need."""

    workspace: Workspace
    params: Params
    provider: LabelProvider
    provider_errors: list[ProviderError] = field(default_factory=list)
    """What the provider did not do."""

    def record_provider_error(self, error: ProviderError) -> None:
        """Remember for the end of the night, say it now."""
        self.provider_errors.append(error)
        get_run_logger().warning("%s The night goes on with what needs no annotators.", error)


@flow(name="nightly", flow_run_name=campaign_name, on_crashed=[mark_cancelled])
def nightly(root: Path) -> RunResult:
    """Bring the campaign in ``root`` one round further, or to the end of the round that was cut off.

    Raises:
        UserError: something a person has to mend; says what, and how.
        ProviderError: the label provider did not do its part; all that could be done without it is done.
    """
    workspace = require_workspace(root)
    with run_lock(workspace) as lock, watch_for_cancellation(), monitored(workspace) as hooks:
        record_flow_runs(lock)
        close_crashed_runs(workspace)
        hooks.before_run()
        params = load_params(workspace.params)
        context = RunContext(workspace, params, create_provider(workspace, params))
        result = advance_round(context)
        if context.provider_errors:
            raise context.provider_errors[0]
        return hooks.after_run(result)


def advance_round(context: RunContext) -> RunResult:
    """The night, once it is the only one at work."""
    workspace = context.workspace
    number = newest_round(workspace)
    finalize_collection(workspace, number)
    published = is_published(workspace, number)
    _check_provider(context, required=published)
    if not published:
        return _run_round(context, number)
    offered = offered_annotation_batches(workspace)
    delivered = _offer_next_batch(context, number) if has_pending_delivery(workspace, number) else None
    collected = _collect(context, number + 1, offered)
    if collected is not None and collected.num_images:
        return _run_round(context, number + 1)
    if delivered is not None:  # the last night was cut off right there
        return _result(number, delivered)
    if num_open(workspace) == 0:
        return RunResult(number, "pool_exhausted", CAMPAIGN_COMPLETE)
    return RunResult(number, "waiting_for_labels", "" if collected is None else collected.message)


def _check_provider(context: RunContext, *, required: bool) -> None:
    """A provider that is away stops a night only where there is nothing to do without it."""
    try:
        context.provider.check()
    except ProviderError as error:
        if required and not error.transient:
            raise
        context.record_provider_error(error)


def _collect(context: RunContext, batch: int, offered: Sequence[AnnotationBatch]) -> CollectionResult | None:
    """Labels of all deliveries the provider had before tonight; None where it is away."""
    try:
        collected = collect_labels(context.workspace, context.provider, context.params, batch, offered)
    except ProviderError as error:
        context.record_provider_error(error)
        return None
    for provider_error in collected.provider_errors:
        context.record_provider_error(provider_error)
    return collected


def _run_round(context: RunContext, number: int) -> RunResult:
    """Derive and publish round ``number``, whose labels are there; offer the next batch."""
    published = derive_and_publish(context, number)
    delivered = _offer_next_batch(context, number)
    return RunResult(number, "completed", published.message) if delivered is None else _result(number, delivered)


def derive_and_publish(context: RunContext, number: int) -> PublishResult:
    """The part of a round that needs no annotators."""
    log, workspace = get_run_logger(), context.workspace
    refresh_code_digests(workspace)
    log.info("round %d", number, extra={"gleaner_round": number})
    for stage in STAGES:
        run_stage(workspace.root, stage, number)
    with translate_service_errors("MLflow", PublishError):
        published = publish_round(workspace, context.params, number)
    log.info("%s", published.message, extra={"gleaner_published": number})
    after_publish(workspace, number)
    _push(workspace)
    return published


def _offer_next_batch(context: RunContext, number: int) -> DeliveryResult | None:
    """Offer the next batch; None where the provider does not take it."""
    try:
        delivered = deliver_batch(context.workspace, context.provider, context.params, number)
    except ProviderError as error:
        context.record_provider_error(error)
        return None
    get_run_logger().info("%s", delivered.message)
    return delivered


def _result(number: int, delivered: DeliveryResult) -> RunResult:
    return RunResult(number, "completed" if delivered.num_open else "pool_exhausted", delivered.message)


def _push(workspace: Workspace) -> None:
    """The round stands without it; the next night sends what is missing."""
    try:
        push_data(workspace)
    except UserError as error:
        get_run_logger().warning("The data of this round was not pushed: %s The next night tries again.", error)


@retrying_task("collect")
def collect_labels(
    workspace: Workspace, provider: LabelProvider, params: Params, batch: int, deliveries: Sequence[AnnotationBatch]
) -> CollectionResult:
    """Fetch finished labels."""
    collected = collect(workspace, provider, params, batch, deliveries, datetime.now(UTC))
    get_run_logger().info("%s", collected.message)
    return collected


@retrying_task("publish")
def publish_round(workspace: Workspace, params: Params, number: int) -> PublishResult:
    """MLflow, ledger, commit and tag."""
    return publish(workspace, params, number)


@retrying_task("push")
def push_data(workspace: Workspace) -> bool:
    """Send data to the default DVC remote, where there is one."""
    return push(workspace)


@retrying_task("deliver")
def deliver_batch(workspace: Workspace, provider: LabelProvider, params: Params, number: int) -> DeliveryResult:
    """Offer the next batch."""
    return deliver(workspace, provider, params, number)


@flow(name="nightly-rounds", flow_run_name=campaign_name, on_crashed=[mark_cancelled])
def run_rounds(root: Path, rounds: int) -> list[RunResult]:
    """Run nights until ``rounds`` more rounds are finished, or there is nothing to do."""
    workspace = require_workspace(root)
    target_round = last_published_round(workspace) + rounds
    results: list[RunResult] = []
    while last_published_round(workspace) < target_round:
        results.append(nightly(root))
        if results[-1].outcome != "completed":
            break
    return results
