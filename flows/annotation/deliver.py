"""Deliver the next batch: write its folder, send it to the provider, record the receipt; each step can be repeated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.annotation.batches import (
    MANIFEST,
    OPEN_TASKS,
    all_annotation_batches,
    num_open,
    open_images,
    prepare_annotation_batch,
    read_annotation_batch,
    read_manifest,
    record_refreshed,
    set_state,
)
from flows.annotation.honeypots import with_honeypots
from flows.annotation.providers.base import AnnotationBatch, LabelProvider, ProviderError
from flows.workspace import git
from flows.workspace.rounds import read_ledger
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.reporting.stopping import CONSIDER_STOPPING
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count_are
from tasks.storage import files

CAMPAIGN_COMPLETE = "No image is left to label in the pool: the campaign is complete."


@dataclass(frozen=True)
class DeliveryResult:
    """Result of a delivery."""

    num_images: int
    """Images in the newest batch."""
    num_open: int
    """Images with the annotators now, from all batches; 0: the campaign is complete."""
    message: str
    is_held: bool = False
    """Whether the newest batch offers no image because stopping is advised."""


def has_pending_delivery(workspace: Workspace, params: Params, round_number: int) -> bool:
    """Whether a batch is still to be sent: after a crash, after the provider did not answer, or held back until now."""
    prepared = any(delivery.state == "prepared" for delivery in all_annotation_batches(workspace))
    newest = read_annotation_batch(workspace, round_number + 1)
    return prepared or newest is None or (newest.is_held and held_back(workspace, params, round_number) is None)


def has_pending_refresh(workspace: Workspace, params: Params, round_number: int) -> bool:
    """Whether open images of earlier batches are still to be ranked and pre-drawn anew by the round's teacher."""
    return params.provider.refresh_open and any(_to_refresh(workspace, round_number))


def _to_refresh(workspace: Workspace, round_number: int) -> Iterator[tuple[AnnotationBatch, Sequence[str]]]:
    """Yield the earlier deliveries that the round has not refreshed yet, each with its open images."""
    store = read_labels(workspace.labels)
    for delivery in all_annotation_batches(workspace):
        open_ids = open_images(delivery, store) if delivery.batch <= round_number else ()
        if open_ids and delivery.state == "delivered" and delivery.refreshed_round != round_number:
            yield delivery, open_ids


def _refresh_open(
    workspace: Workspace, provider: LabelProvider, params: Params, round_number: int
) -> list[ProviderError]:
    """Refresh the open tasks of earlier batches; return the provider's errors, one must not hold up the others."""
    if not has_pending_refresh(workspace, params, round_number):
        return []
    try:
        _require_unchanged_manifest(workspace, round_number)
        newest = {task.image_id: task for task in read_manifest(workspace.derived("handoff") / OPEN_TASKS)}
    except UserError as error:  # labels are collected all the same
        return [ProviderError.of(error)]
    provider_errors = []
    for delivery, open_ids in _to_refresh(workspace, round_number):
        tasks = sorted((newest[i] for i in open_ids if i in newest), key=lambda task: task.rank)
        try:
            refreshed = provider.refresh(delivery, tasks)
            record_refreshed(delivery, [task for task in tasks if task.image_id in refreshed], round_number)
        except UserError as error:
            provider_errors.append(ProviderError.of(error))
    return provider_errors


def held_back(workspace: Workspace, params: Params, round_number: int) -> str | None:
    """Return why the batch of a round is not offered; None: stopping is not advised, or advice does not hold it."""
    if params.nightly.stop != "hold":
        return None
    stopping = read_ledger(workspace, round_number)["metrics"]["stopping"]
    return str(stopping["reason"]) if stopping["advice"] == CONSIDER_STOPPING else None


def held_message(batch: int, reason: str | None) -> str:
    """Say that a batch is held back, and how to offer it all the same."""
    fix = "To offer it all the same, set nightly.stop to advise in params.yaml and run again."
    return f"Batch {batch} is held back: {reason}. {fix}"


def deliver(workspace: Workspace, provider: LabelProvider, params: Params, round_number: int) -> DeliveryResult:
    """Deliver the selection of round ``round_number`` as batch ``round_number + 1``, and earlier batches not sent yet.

    Open images of earlier batches get their new rank and boxes.

    Raises:
        UserError: ``derived/`` is not that of the round.
        ProviderError: the provider did not accept a batch; the others were sent, and the next call sends it again.
    """
    _prepare_batch(workspace, params, round_number)
    provider_errors: list[ProviderError] = []
    for delivery in all_annotation_batches(workspace):
        if delivery.state == "prepared":
            try:
                set_state(delivery, "delivered", provider.deliver(delivery))
            except UserError as error:  # one batch must not hold up the others
                provider_errors.append(ProviderError.of(error))
    provider_errors += _refresh_open(workspace, provider, params, round_number)
    git.commit(workspace, f"Deliver batch {round_number + 1}", git.SOURCE_PATHS)
    if provider_errors:
        raise provider_errors[0]
    return _delivery_result(workspace, provider, round_number + 1, held_back(workspace, params, round_number))


def _prepare_batch(workspace: Workspace, params: Params, round_number: int) -> None:
    """Write the folder of the batch unless it exists. Every round has one, even where it offers no image."""
    existing = read_annotation_batch(workspace, round_number + 1)
    held = held_back(workspace, params, round_number) is not None
    if existing is not None and (held or not existing.is_held):
        return
    _require_unchanged_manifest(workspace, round_number)
    tasks = read_manifest(workspace.derived("handoff") / MANIFEST)
    is_limit_reached = num_open(workspace) >= params.nightly.max_pending_images
    campaign = git.campaign_id(workspace.root)
    offered = () if is_limit_reached or held else with_honeypots(workspace, params, tasks, round_number + 1)
    prepare_annotation_batch(workspace, campaign, round_number + 1, offered, is_held=held and bool(tasks))


def _delivery_result(workspace: Workspace, provider: LabelProvider, batch: int, held: str | None) -> DeliveryResult:
    delivery = read_annotation_batch(workspace, batch)
    num_images = 0 if delivery is None else len(delivery.image_ids)
    num_pending = num_open(workspace)
    if num_images:
        message = f"Batch {batch}: {count_are(num_images, 'image')} out for labeling ({provider.name})."
    elif delivery is not None and delivery.is_held:
        message = held_message(batch, held)
    elif num_pending:
        pending = count_are(num_pending, "image")
        message = f"Batch {batch} offers no image: {pending} still with the annotators ({provider.name})."
    else:
        message = CAMPAIGN_COMPLETE
    return DeliveryResult(num_images, num_pending, message, delivery is not None and delivery.is_held)


def _require_unchanged_manifest(workspace: Workspace, round_number: int) -> None:
    """Refuse a manifest that was derived again since the round was published.

    Raises:
        UserError: it is not the one recorded in the ledger.
    """
    recorded = files.read_json(workspace.ledger(round_number))["manifest_sha256"]
    manifest = workspace.derived("handoff") / MANIFEST
    if not manifest.is_file() or files.sha256_file(manifest) != recorded:
        tag = git.round_tag(round_number)
        fix = f"Run: git checkout {tag} -- dvc.lock params.yaml code_versions.json && dvc checkout"
        raise UserError(manifest, f"the manifest differs from that of {tag}, expected it unchanged", fix)
