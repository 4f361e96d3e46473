"""The nightly round: collect, derive stage by stage, publish, deliver.

Where to begin follows from the files (``flows.workspace.rounds``), so a run that was killed is started again with the
same command and continues. A run never waits for people: without labels it reports that and ends. Nor does it wait for
a label provider that is unavailable: it does what needs no labels, and ends with the provider's error.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.annotation.batches import num_open, offered_annotation_batches
from flows.annotation.collect import CollectionResult, collect, finalize_collection
from flows.annotation.deliver import (
    CAMPAIGN_COMPLETE,
    DeliveryResult,
    deliver,
    has_pending_delivery,
    has_pending_refresh,
    held_back,
    held_message,
)
from flows.annotation.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.registry.publish import PublishError, PublishResult, publish, push
from flows.run_context import RunContext, open_run
from flows.run_hooks import (
    after_publish,
    close_crashed_runs,
    mark_cancelled,
    monitored,
    record_flow_runs,
    report_result,
    require_owned_tracking,
    watch_for_cancellation,
)
from flows.runtime.masking import masked_errors
from flows.runtime.retries import retrying_task, translate_service_errors
from flows.stage_runner import run_stage
from flows.workspace.dvc import refresh_code_digests
from flows.workspace.rounds import RunResult, is_published, last_published_round, newest_round
from flows.workspace.run_lock import require_workspace
from tasks.data.paths import STAGES, Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError


def campaign_name() -> str:
    """Name the flow run after the campaign's folder."""
    return Path(flow_run.parameters["root"]).name


@flow(name="nightly", flow_run_name=campaign_name, on_crashed=[mark_cancelled])
def nightly(root: Path) -> RunResult:
    """Advance the campaign in ``root`` by one round, or finish the round that was interrupted.

    Raises:
        UserError: something that a person has to correct, with the fix.
        ProviderError: the label provider failed; everything that does not need it is done.
    """
    with masked_errors(), open_run(root) as context, watch_for_cancellation(), monitored(context):
        record_flow_runs(context.lock)
        close_crashed_runs(context.workspace)
        require_owned_tracking(context.workspace)
        result = advance_round(context)
        if context.provider_errors:
            raise context.provider_errors[0]
        report_result(context, result)
        return result


def advance_round(context: RunContext) -> RunResult:
    """Run one round while holding the campaign's lock."""
    workspace = context.workspace
    number = newest_round(workspace)
    finalize_collection(workspace, number)
    published = is_published(workspace, number)
    _check_provider(context, required=published)
    if not published:
        return _run_round(context, number)
    offered = offered_annotation_batches(workspace)
    is_pending = has_pending_delivery(workspace, context.params, number) or has_pending_refresh(
        workspace, context.params, number
    )
    delivered = _offer_next_batch(context, number) if is_pending else None
    collected = _collect(context, number + 1, offered)
    if collected is not None and collected.num_images:
        return _run_round(context, number + 1)
    if delivered is not None:  # the last run was interrupted at this point
        return _result(number, delivered)
    held = held_back(workspace, context.params, number)
    if num_open(workspace) == 0 and held is not None:
        return RunResult(number, "held", held_message(number + 1, held))
    if num_open(workspace) == 0:
        return RunResult(number, "pool_exhausted", CAMPAIGN_COMPLETE)
    return RunResult(number, "waiting_for_labels", "" if collected is None else collected.message)


def _record_provider_error(context: RunContext, error: ProviderError) -> None:
    """Log an error now, and keep it for the end of the run."""
    context.provider_errors.append(error)
    get_run_logger().warning("%s The run continues with what needs no annotators.", error)


def _check_provider(context: RunContext, *, required: bool) -> None:
    """Check the provider; an unavailable one stops the run only if nothing can be done without it."""
    try:
        context.provider.check()
    except ProviderError as error:
        if required and not error.transient:
            raise
        _record_provider_error(context, error)


def _collect(context: RunContext, batch: int, offered: Sequence[AnnotationBatch]) -> CollectionResult | None:
    """Collect labels of all batches offered before this run; None if the provider is unavailable."""
    try:
        collected = collect_labels(context.workspace, context.provider, context.params, batch, offered)
    except ProviderError as error:
        _record_provider_error(context, error)
        return None
    for provider_error in collected.provider_errors:
        _record_provider_error(context, provider_error)
    return collected


def _run_round(context: RunContext, number: int) -> RunResult:
    """Derive and publish round ``number``, whose labels are collected; offer the next batch."""
    published = derive_and_publish(context, number)
    delivered = _offer_next_batch(context, number)
    return RunResult(number, "completed", published.message) if delivered is None else _result(number, delivered)


def derive_and_publish(context: RunContext, number: int) -> PublishResult:
    """Run the stages and publish: the part of a round that needs no annotators."""
    log, workspace = get_run_logger(), context.workspace
    refresh_code_digests(workspace)
    log.info("round %d", number, extra={"gleaner_round": number})
    limit_s = 60 * context.params.nightly.stage_timeout_minutes
    for stage in STAGES:
        run_stage(workspace.root, stage, number, limit_s)
    with translate_service_errors("MLflow", PublishError):
        published = publish_round(workspace, context.params, number)
    log.info("%s", published.message, extra={"gleaner_published": number})
    after_publish(workspace, number)
    _push(workspace)
    return published


def _offer_next_batch(context: RunContext, number: int) -> DeliveryResult | None:
    """Offer the next batch; None if the provider does not accept it."""
    try:
        delivered = deliver_batch(context.workspace, context.provider, context.params, number)
    except ProviderError as error:
        _record_provider_error(context, error)
        return None
    get_run_logger().info("%s", delivered.message)
    return delivered


def _result(number: int, delivered: DeliveryResult) -> RunResult:
    is_complete = not delivered.num_open and not delivered.is_held
    return RunResult(number, "pool_exhausted" if is_complete else "completed", delivered.message)


def _push(workspace: Workspace) -> None:
    """Push data to the remote; the round is complete without it, and the next run pushes what is missing."""
    try:
        push_data(workspace)
    except UserError as error:
        get_run_logger().warning("The data of this round was not pushed: %s The next run tries again.", error)


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
    """Write the MLflow run, ledger, commit and tag."""
    return publish(workspace, params, number)


@retrying_task("push")
def push_data(workspace: Workspace) -> bool:
    """Push data to the default DVC remote, if there is one."""
    return push(workspace)


@retrying_task("deliver")
def deliver_batch(workspace: Workspace, provider: LabelProvider, params: Params, number: int) -> DeliveryResult:
    """Offer the next batch."""
    return deliver(workspace, provider, params, number)


@flow(name="nightly-rounds", flow_run_name=campaign_name, on_crashed=[mark_cancelled])
def run_rounds(root: Path, rounds: int) -> list[RunResult]:
    """Run rounds until ``rounds`` more are published, or there is nothing to do."""
    workspace = require_workspace(root)
    target_round = last_published_round(workspace) + rounds
    results: list[RunResult] = []
    while last_published_round(workspace) < target_round:
        results.append(nightly(root))
        if results[-1].outcome != "completed":
            break
    return results
