"""The next batch goes out: written down first, then offered, then marked; each step may be repeated."""

from dataclasses import dataclass

from flows import vcs
from flows.deliveries import MANIFEST, mark, prepare_delivery, read_delivery, read_manifest
from flows.providers.base import LabelProvider
from tasks import files
from tasks.errors import UserError
from tasks.paths import Workspace


@dataclass(frozen=True)
class Delivered:
    """What went out."""

    images: int
    """0: nothing is left to ask for."""
    message: str


def deliver(workspace: Workspace, provider: LabelProvider, round_number: int) -> Delivered:
    """Offer what round ``round_number`` selected, as batch ``round_number + 1``.

    Raises:
        UserError: derived/ is not that of the round.
    """
    batch = round_number + 1
    delivery = read_delivery(workspace, batch)
    if delivery is None:
        _require_same_round(workspace, round_number)
        tasks = read_manifest(workspace.derived("handoff") / MANIFEST)
        if not tasks:
            return Delivered(0, "Nothing is left in the pool to ask for: the campaign is complete.")
        delivery = prepare_delivery(workspace, vcs.campaign_id(workspace.root), batch, tasks)
    if delivery.state == "prepared":
        delivery = mark(delivery, "delivered", provider.deliver(delivery))
    vcs.commit(workspace, f"Deliver batch {batch}: {len(delivery.image_ids)} images", vcs.SOURCES)
    return Delivered(
        len(delivery.image_ids),
        f"Batch {batch}: {len(delivery.image_ids)} images are out for labeling ({provider.name}).",
    )


def _require_same_round(workspace: Workspace, round_number: int) -> None:
    """Nobody may have derived something else since the round was published."""
    recorded = files.read_json(workspace.ledger(round_number))["manifest_sha256"]
    manifest = workspace.derived("handoff") / MANIFEST
    if not manifest.is_file() or files.sha256_file(manifest) != recorded:
        tag = vcs.round_tag(round_number)
        fix = f"Run: git checkout {tag} -- dvc.lock params.yaml code.json && dvc checkout"
        raise UserError(manifest, f"the manifest is not that of {tag}, expected it unchanged since then", fix)
