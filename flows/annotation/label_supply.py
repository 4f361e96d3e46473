"""Warn when a campaign runs short of labels, or of images to label."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq

from flows.annotation.batches import all_annotation_batches
from flows.annotation.leases import num_open
from flows.workspace.rounds import RunResult, newest_round
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.formatting import count, count_are


def label_supply_warning(workspace: Workspace, params: Params, result: RunResult) -> str | None:
    """Return the warning to send after a run; None: there is enough of both.

    Args:
        workspace: the campaign.
        params: limits are in section ``nightly``.
        result: outcome of the run.
    """
    if result.outcome == "pool_exhausted":
        return "The pool has no image left to label. Add images to the pool, or end the campaign."
    if result.outcome == "waiting_for_labels":
        return _no_labels_warning(workspace, params.nightly.alert_after_days_without_labels)
    return _pool_warning(workspace, params.nightly.alert_when_batches_left)


def _no_labels_warning(workspace: Workspace, limit_days: float) -> str | None:
    newest = read_batch(workspace.label_batch(newest_round(workspace)))
    offered = [datetime.fromisoformat(delivery.created_at) for delivery in all_annotation_batches(workspace)]
    waiting = datetime.now(UTC) - max([datetime.fromisoformat(newest.collected_at), *offered])
    if waiting < timedelta(days=limit_days):
        return None
    return f"For {count(waiting.days, 'day')} no label was finished, while images are with the annotators. Remind them."


def _pool_warning(workspace: Workspace, limit_batches: int) -> str | None:
    path = workspace.derived("assemble") / "unlabeled.parquet"
    deliveries = all_annotation_batches(workspace)
    if not deliveries or not path.is_file():
        return None
    offered = len(deliveries[-1].image_ids)
    left = pq.read_metadata(path).num_rows - num_open(workspace)
    if left >= limit_batches * offered:
        return None
    return f"{count_are(left, 'image')} left to label after this batch of {offered}. Add images to the pool."
