"""The next batch goes out: written down first, then offered, then marked; each step may be repeated."""

from dataclasses import dataclass

from flows.annotation.batches import (
    MANIFEST,
    all_annotation_batches,
    prepare_annotation_batch,
    read_annotation_batch,
    read_manifest,
    set_state,
)
from flows.annotation.leases import num_open
from flows.annotation.providers.base import LabelProvider, ProviderError
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.storage import files

CAMPAIGN_COMPLETE = "Nothing is left in the pool to ask for: the campaign is complete."


@dataclass(frozen=True)
class DeliveryResult:
    """What went out."""

    num_images: int
    """Of the newest batch; 0: none were asked for."""
    num_open: int
    """With the annotators now, from all batches; 0: the campaign is complete."""
    message: str


def has_pending_delivery(workspace: Workspace, round_number: int) -> bool:
    """Whether a night before was cut off, or its provider away, before everything was offered."""
    prepared = any(delivery.state == "prepared" for delivery in all_annotation_batches(workspace))
    return prepared or read_annotation_batch(workspace, round_number + 1) is None


def deliver(workspace: Workspace, provider: LabelProvider, params: Params, round_number: int) -> DeliveryResult:
    """Offer what round ``round_number`` selected, as batch ``round_number + 1``, and what is left from before.

    Raises:
        UserError: derived/ is not that of the round.
        ProviderError: the provider did not take a batch; it stays prepared and the next call offers it again.
    """
    _prepare_batch(workspace, params, round_number)
    provider_errors: list[ProviderError] = []
    for delivery in all_annotation_batches(workspace):
        if delivery.state == "prepared":
            try:
                set_state(delivery, "delivered", provider.deliver(delivery))
            except ProviderError as error:  # of one batch, or of all: the others must not wait for it
                provider_errors.append(error)
    git.commit(workspace, f"Deliver batch {round_number + 1}", git.SOURCE_PATHS)
    if provider_errors:
        raise provider_errors[0]
    return _delivery_result(workspace, provider, round_number + 1)


def _prepare_batch(workspace: Workspace, params: Params, round_number: int) -> None:
    """Put the batch down on disk. Every round hands over to the next, even where it asks for no image."""
    if read_annotation_batch(workspace, round_number + 1) is not None:
        return
    _require_unchanged_manifest(workspace, round_number)
    tasks = read_manifest(workspace.derived("handoff") / MANIFEST)
    is_limit_reached = num_open(workspace) >= params.nightly.max_pending_images
    campaign = git.campaign_id(workspace.root)
    prepare_annotation_batch(workspace, campaign, round_number + 1, () if is_limit_reached else tasks)


def _delivery_result(workspace: Workspace, provider: LabelProvider, batch: int) -> DeliveryResult:
    delivery = read_annotation_batch(workspace, batch)
    num_images = 0 if delivery is None else len(delivery.image_ids)
    num_pending = num_open(workspace)
    if num_images:
        message = f"Batch {batch}: {num_images} images are out for labeling ({provider.name})."
    elif num_pending:
        message = f"Batch {batch} asks for no image: {num_pending} are still with the annotators ({provider.name})."
    else:
        message = CAMPAIGN_COMPLETE
    return DeliveryResult(num_images, num_pending, message)


def _require_unchanged_manifest(workspace: Workspace, round_number: int) -> None:
    """Nobody may have derived something else since the round was published."""
    recorded = files.read_json(workspace.ledger(round_number))["manifest_sha256"]
    manifest = workspace.derived("handoff") / MANIFEST
    if not manifest.is_file() or files.sha256_file(manifest) != recorded:
        tag = git.round_tag(round_number)
        fix = f"Run: git checkout {tag} -- dvc.lock params.yaml code_versions.json && dvc checkout"
        raise UserError(manifest, f"the manifest is not that of {tag}, expected it unchanged since then", fix)
