"""The next batch goes out: written down first, then offered, then marked; each step may be repeated."""

from dataclasses import dataclass

from flows import vcs
from flows.labels.deliveries import MANIFEST, all_deliveries, mark, prepare_delivery, read_delivery, read_manifest
from flows.labels.leases import open_count
from flows.labels.providers.base import LabelProvider, ProviderError
from tasks import files
from tasks.errors import UserError
from tasks.params import Params
from tasks.paths import Workspace

COMPLETE = "Nothing is left in the pool to ask for: the campaign is complete."


@dataclass(frozen=True)
class Delivered:
    """What went out."""

    images: int
    """Of the newest batch; 0: none were asked for."""
    open_images: int
    """With the annotators now, from all batches; 0: the campaign is complete."""
    message: str


def is_outstanding(workspace: Workspace, round_number: int) -> bool:
    """Whether a night before was cut off, or its provider away, before everything was offered."""
    prepared = any(delivery.state == "prepared" for delivery in all_deliveries(workspace))
    return prepared or read_delivery(workspace, round_number + 1) is None


def deliver(workspace: Workspace, provider: LabelProvider, params: Params, round_number: int) -> Delivered:
    """Offer what round ``round_number`` selected, as batch ``round_number + 1``, and what is left from before.

    Raises:
        UserError: derived/ is not that of the round.
        ProviderError: the provider did not take a batch; it stays prepared and the next call offers it again.
    """
    _prepare(workspace, params, round_number)
    troubles: list[ProviderError] = []
    for delivery in all_deliveries(workspace):
        if delivery.state == "prepared":
            try:
                mark(delivery, "delivered", provider.deliver(delivery))
            except ProviderError as error:  # of one batch, or of all: the others must not wait for it
                troubles.append(error)
    vcs.commit(workspace, f"Deliver batch {round_number + 1}", vcs.SOURCES)
    if troubles:
        raise troubles[0]
    return _delivered(workspace, provider, round_number + 1)


def _prepare(workspace: Workspace, params: Params, round_number: int) -> None:
    """Put the batch down on disk. Every round hands over to the next, even where it asks for no image."""
    if read_delivery(workspace, round_number + 1) is not None:
        return
    _require_same_round(workspace, round_number)
    tasks = read_manifest(workspace.derived("handoff") / MANIFEST)
    held_back = open_count(workspace) >= params.nightly.max_open_images
    campaign = vcs.campaign_id(workspace.root)
    prepare_delivery(workspace, campaign, round_number + 1, () if held_back else tasks)


def _delivered(workspace: Workspace, provider: LabelProvider, batch: int) -> Delivered:
    delivery = read_delivery(workspace, batch)
    images = 0 if delivery is None else len(delivery.image_ids)
    still_open = open_count(workspace)
    if images:
        said = f"Batch {batch}: {images} images are out for labeling ({provider.name})."
    elif still_open:
        said = f"Batch {batch} asks for no image: {still_open} are still with the annotators ({provider.name})."
    else:
        said = COMPLETE
    return Delivered(images, still_open, said)


def _require_same_round(workspace: Workspace, round_number: int) -> None:
    """Nobody may have derived something else since the round was published."""
    recorded = files.read_json(workspace.ledger(round_number))["manifest_sha256"]
    manifest = workspace.derived("handoff") / MANIFEST
    if not manifest.is_file() or files.sha256_file(manifest) != recorded:
        tag = vcs.round_tag(round_number)
        fix = f"Run: git checkout {tag} -- dvc.lock params.yaml code.json && dvc checkout"
        raise UserError(manifest, f"the manifest is not that of {tag}, expected it unchanged since then", fix)
