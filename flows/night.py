"""The nightly round: collect, derive stage by stage, publish, deliver.

Where it begins is read off the files (``flows.position``), so a night that was killed is called again with
the same command, and goes on. It never waits for people: without labels it says so and leaves. Nor does it wait
for a label provider that is away: what needs no labels is done, and the end of the night says what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.code_digests import refresh_code_digests
from flows.labels.collect import Collected, collect, settle
from flows.labels.deliver import COMPLETE, Delivered, deliver, is_outstanding
from flows.labels.deliveries import offered_deliveries
from flows.labels.leases import open_count
from flows.labels.providers.base import Delivery, LabelProvider, ProviderError
from flows.labels.providers.choose import choose_provider
from flows.position import NightResult, is_published, newest_round
from flows.records.publish import Published, PublishError, publish, push
from flows.safety.cancellation import call_it_cancelled, heeding_cancellation
from flows.safety.causes import named_causes
from flows.safety.retries import night_task
from flows.safety.unfinished import close_unfinished, note_flow_runs
from flows.stage import reproduce
from flows.watching.watch import show_published, watched
from flows.workspaces import night_lock, require_workspace
from tasks.errors import UserError
from tasks.params import Params, load_params
from tasks.paths import STAGES, Workspace


def campaign_name() -> str:
    """What the flow run is called: the campaign's folder."""
    return Path(flow_run.parameters["root"]).name


@dataclass(frozen=True)
class Tonight:
    """What all parts of a night need."""

    workspace: Workspace
    params: Params
    provider: LabelProvider
    troubles: list[ProviderError] = field(default_factory=list)
    """What the provider did not do."""

    def go_on_without(self, error: ProviderError) -> None:
        """Remember for the end of the night, say it now."""
        self.troubles.append(error)
        get_run_logger().warning("%s The night goes on with what needs no annotators.", error)


@flow(name="night", flow_run_name=campaign_name, on_crashed=[call_it_cancelled])
def night(root: Path) -> NightResult:
    """Bring the campaign in ``root`` one round further, or to the end of the round that was cut off.

    Raises:
        UserError: something a person has to mend; says what, and how.
        ProviderError: the label provider did not do its part; all that could be done without it is done.
    """
    workspace = require_workspace(root)
    with night_lock(workspace) as lock, heeding_cancellation(), watched(workspace) as watch:
        note_flow_runs(lock)
        close_unfinished(workspace)
        watch.begun()
        params = load_params(workspace.params)
        tonight = Tonight(workspace, params, choose_provider(workspace, params))
        result = one_round_further(tonight)
        if tonight.troubles:
            raise tonight.troubles[0]
        return watch.ended(result)


def one_round_further(tonight: Tonight) -> NightResult:
    """The night, once it is the only one at work."""
    workspace = tonight.workspace
    number = newest_round(workspace)
    settle(workspace, number)
    published = is_published(workspace, number)
    _check(tonight, needed=published)
    if not published:
        return _round(tonight, number)
    offered = offered_deliveries(workspace)
    delivered = _hand_over(tonight, number) if is_outstanding(workspace, number) else None
    collected = _collect(tonight, number + 1, offered)
    if collected is not None and collected.images:
        return _round(tonight, number + 1)
    if delivered is not None:  # the last night was cut off right there
        return _ended(number, delivered)
    if open_count(workspace) == 0:
        return NightResult(number, "exhausted", COMPLETE)
    return NightResult(number, "waiting", "" if collected is None else collected.message)


def _check(tonight: Tonight, *, needed: bool) -> None:
    """A provider that is away stops a night only where there is nothing to do without it."""
    try:
        tonight.provider.check()
    except ProviderError as error:
        if needed and not error.transient:
            raise
        tonight.go_on_without(error)


def _collect(tonight: Tonight, batch: int, offered: Sequence[Delivery]) -> Collected | None:
    """Labels of all deliveries the provider had before tonight; None where it is away."""
    try:
        collected = collect_labels(tonight.workspace, tonight.provider, tonight.params, batch, offered)
    except ProviderError as error:
        tonight.go_on_without(error)
        return None
    for trouble in collected.troubles:
        tonight.go_on_without(trouble)
    return collected


def _round(tonight: Tonight, number: int) -> NightResult:
    """Derive and publish round ``number``, whose labels are there; offer the next batch."""
    published = derive_and_publish(tonight, number)
    delivered = _hand_over(tonight, number)
    return NightResult(number, "finished", published.message) if delivered is None else _ended(number, delivered)


def derive_and_publish(tonight: Tonight, number: int) -> Published:
    """The part of a round that needs no annotators."""
    log, workspace = get_run_logger(), tonight.workspace
    refresh_code_digests(workspace)
    log.info("round %d", number, extra={"gleaner_round": number})
    for stage in STAGES:
        reproduce(workspace.root, stage, number)
    with named_causes("MLflow", PublishError):
        published = publish_round(workspace, tonight.params, number)
    log.info("%s", published.message, extra={"gleaner_published": number})
    show_published(workspace, number)
    _push(workspace)
    return published


def _hand_over(tonight: Tonight, number: int) -> Delivered | None:
    """Offer the next batch; None where the provider does not take it."""
    try:
        delivered = deliver_batch(tonight.workspace, tonight.provider, tonight.params, number)
    except ProviderError as error:
        tonight.go_on_without(error)
        return None
    get_run_logger().info("%s", delivered.message)
    return delivered


def _ended(number: int, delivered: Delivered) -> NightResult:
    return NightResult(number, "finished" if delivered.open_images else "exhausted", delivered.message)


def _push(workspace: Workspace) -> None:
    """The round stands without it; the next night sends what is missing."""
    try:
        push_data(workspace)
    except UserError as error:
        get_run_logger().warning("The data of this round was not pushed: %s The next night tries again.", error)


@night_task("collect")
def collect_labels(
    workspace: Workspace, provider: LabelProvider, params: Params, batch: int, deliveries: Sequence[Delivery]
) -> Collected:
    """Fetch finished labels."""
    collected = collect(workspace, provider, params, batch, deliveries, datetime.now(UTC))
    get_run_logger().info("%s", collected.message)
    return collected


@night_task("publish")
def publish_round(workspace: Workspace, params: Params, number: int) -> Published:
    """MLflow, ledger, commit and tag."""
    return publish(workspace, params, number)


@night_task("push")
def push_data(workspace: Workspace) -> bool:
    """Send data to the default DVC remote, where there is one."""
    return push(workspace)


@night_task("deliver")
def deliver_batch(workspace: Workspace, provider: LabelProvider, params: Params, number: int) -> Delivered:
    """Offer the next batch."""
    return deliver(workspace, provider, params, number)
