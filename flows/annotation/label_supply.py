"""Whether a campaign is about to stop for want of labels, or of images to label."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq

from flows.annotation.batches import all_annotation_batches
from flows.annotation.leases import num_open
from flows.workspace.state import RunResult, newest_round
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.params import Params


def label_supply_warning(workspace: Workspace, params: Params, result: RunResult) -> str | None:
    """What somebody should know after this night; None: there is enough of both.

    Args:
        workspace: the campaign.
        params: its parameters; section nightly says when it is time.
        result: how the night ended.
    """
    if result.outcome == "pool_exhausted":
        return "No image is left to ask for. Add images to the pool, or end the campaign here."
    if result.outcome == "waiting_for_labels":
        return _no_labels_warning(workspace, params.nightly.alert_after_days_without_labels)
    return _pool_warning(workspace, params.nightly.alert_when_batches_left)


def _no_labels_warning(workspace: Workspace, limit_days: float) -> str | None:
    newest = read_batch(workspace.label_batch(newest_round(workspace)))
    offered = [datetime.fromisoformat(delivery.created_at) for delivery in all_annotation_batches(workspace)]
    waiting = datetime.now(UTC) - max([datetime.fromisoformat(newest.collected_at), *offered])
    if waiting < timedelta(days=limit_days):
        return None
    return f"For {waiting.days} days nobody has finished a label, and work is out. Remind the annotators."


def _pool_warning(workspace: Workspace, limit_batches: int) -> str | None:
    path = workspace.derived("assemble") / "unlabeled.parquet"
    deliveries = all_annotation_batches(workspace)
    if not deliveries or not path.is_file():
        return None
    offered = len(deliveries[-1].image_ids)
    left = pq.read_metadata(path).num_rows - num_open(workspace)
    if left >= limit_batches * offered:
        return None
    return f"{left} images are left to ask for after this batch of {offered}. Add images to the pool."
