"""Whether a campaign is about to stop for want of labels, or of images to label."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq

from flows.labels.deliveries import all_deliveries
from flows.labels.leases import open_count
from flows.position import NightResult, newest_round
from tasks.label_store import read_batch
from tasks.params import Params
from tasks.paths import Workspace


def running_dry(workspace: Workspace, params: Params, result: NightResult) -> str | None:
    """What somebody should know after this night; None: there is enough of both.

    Args:
        workspace: the campaign.
        params: its parameters; section nightly says when it is time.
        result: how the night ended.
    """
    if result.outcome == "exhausted":
        return "No image is left to ask for. Add images to the pool, or end the campaign here."
    if result.outcome == "waiting":
        return _no_labels(workspace, params.nightly.alarm_after_days)
    return _few_images(workspace, params.nightly.alarm_batches_left)


def _no_labels(workspace: Workspace, limit_days: float) -> str | None:
    newest = read_batch(workspace.label_batch(newest_round(workspace)))
    offered = [datetime.fromisoformat(delivery.created_at) for delivery in all_deliveries(workspace)]
    waiting = datetime.now(UTC) - max([datetime.fromisoformat(newest.collected_at), *offered])
    if waiting < timedelta(days=limit_days):
        return None
    return f"For {waiting.days} days nobody has finished a label, and work is out. Remind the annotators."


def _few_images(workspace: Workspace, limit_batches: int) -> str | None:
    path = workspace.derived("assemble") / "unlabeled.parquet"
    deliveries = all_deliveries(workspace)
    if not deliveries or not path.is_file():
        return None
    offered = len(deliveries[-1].image_ids)
    left = pq.read_metadata(path).num_rows - open_count(workspace)
    if left >= limit_batches * offered:
        return None
    return f"{left} images are left to ask for after this batch of {offered}. Add images to the pool."
