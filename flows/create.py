"""``gleaner init``: a campaign workspace, whole or not at all."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows import data_versions, vcs
from flows.code_digests import packaged, refresh_code_digests
from flows.template import campaign_dvc_yaml, dvc_ignore, git_ignore
from flows.workspaces import is_workspace
from tasks import files
from tasks.campaign import CampaignData, CampaignPlan, create_campaign_data
from tasks.errors import UserError
from tasks.image_cache import image_cache
from tasks.importers.bucket import ImageBucket
from tasks.importers.gather import Source
from tasks.object_store import is_object_uri
from tasks.params import Params, load_params
from tasks.params_template import make_params
from tasks.paths import Workspace
from tasks.seen_images import seen_objects

_NO_CLASSES_YET = ("object",)

# Where a user's own campaign starts from other numbers than the demo's small drawn digits; --set overrides them.
OWN_DATA_SETTINGS = (
    "model.short_side_px=256",
    "model.long_side_px=512",
    "views.flip_probability=0.5",
    "train.iterations=300",
    "train.burn_in_iterations=200",
    # For 100 iterations with unlabeled images; the demo has 40.
    "ssl.ema_decay=0.98",
    "ssl.ramp_iterations=40",
)


@dataclass(frozen=True)
class NewCampaign:
    """What ``gleaner init`` is asked for; all else stands in params.yaml."""

    source: Source
    classes: tuple[str, ...] | None
    """None: those found in the annotations, the most frequent first."""
    seed_labels: int | None
    """Images of the seed batch; None: all annotated ones that are left."""
    calibration_images: int
    val_frac: float
    """Share of the annotated images drawn for validation, unless the source brings its own."""
    oracle: bool
    settings: tuple[str, ...]
    """``section.key=value``, in the order they are applied."""
    imported_at: str
    """ISO 8601 with time zone; the time the seed labels carry."""
    bucket: str | None = None
    """s3:// prefix of the images, which stay there; takes the place of ``source.images``."""


def create_workspace(target: Path, campaign: NewCampaign, cache: str | None = None) -> CampaignData:
    """Make the workspace ``target``.

    It is built beside its place and renamed at the end: a kill leaves only a hidden folder, which the next
    call clears away.

    Args:
        target: a new or an empty folder.
        campaign: what it is made of.
        cache: DVC cache shared with other workspaces, see ``data_versions.create_store``.

    Raises:
        UserError: the target holds something already, or the source or a setting is unusable.
    """
    target = target.absolute()
    _require_free(target)
    building = target.with_name(f".{target.name}.gleaner-init")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        data = _build(Workspace(building), campaign, cache)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return data


def _require_free(target: Path) -> None:
    if is_workspace(target):
        raise UserError(target, "the folder is a campaign already, expected a new one", "Go on with: gleaner night")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(target, "the place is taken, expected an empty or a new folder", "Choose another name.")


def _build(workspace: Workspace, campaign: NewCampaign, cache: str | None) -> CampaignData:
    root = workspace.root
    params = _write_params(workspace, campaign, campaign.classes or _NO_CLASSES_YET)
    source = _with_bucket(campaign, params, workspace)
    data = create_campaign_data(source, _plan(campaign, params), workspace)
    _write_params(workspace, campaign, data.classes)
    vcs.create_repository(root)
    data_versions.create_store(root, cache)
    files.write_bytes(workspace.dvc_yaml, campaign_dvc_yaml().encode())
    files.write_bytes(root / ".gitignore", git_ignore().encode())
    files.write_bytes(root / ".dvcignore", dvc_ignore().encode())
    refresh_code_digests(workspace)
    data_versions.add(workspace, workspace.images, workspace.index, workspace.frozen, workspace.previous)
    vcs.commit(workspace, f"Start the campaign: {data.counts['seed_images']} seed images")
    return data


def _with_bucket(campaign: NewCampaign, params: Params, workspace: Workspace) -> Source:
    """The source, with its images looked at where they are objects."""
    if campaign.bucket is None:
        return campaign.source
    seen = seen_objects(workspace, image_cache(workspace))
    pool, max_pixels = params.pool, params.prepare.max_pixels
    images = ImageBucket(campaign.bucket, seen, workers=pool.download_workers, max_pixels=max_pixels)
    return replace(campaign.source, images=images)


def _write_params(workspace: Workspace, campaign: NewCampaign, classes: Sequence[str]) -> Params:
    text = make_params(packaged("params.yaml").read_text("utf-8"), classes=classes, overrides=campaign.settings)
    files.write_bytes(workspace.params, text.encode())
    return load_params(workspace.params)


def _plan(campaign: NewCampaign, params: Params) -> CampaignPlan:
    return CampaignPlan(
        seed=params.seed,
        classes=campaign.classes,
        seed_images=campaign.seed_labels,
        calibration_images=campaign.calibration_images,
        val_frac=campaign.val_frac,
        oracle=campaign.oracle,
        imported_at=campaign.imported_at,
        max_pixels=params.prepare.max_pixels,
    )


def pool_setting(images: str) -> str:
    """The setting that lets ``gleaner pool sync`` find the images again."""
    place = images if is_object_uri(images) else str(Path(images).absolute())
    return f"pool.source={json.dumps(place, ensure_ascii=False)}"


def data_counts(data: CampaignData) -> Sequence[tuple[str, int]]:
    """What a person wants to know of a new campaign, in order."""
    names = (
        ("pool images", "pool_images"), ("seed images", "seed_images"), ("seed boxes", "seed_boxes"),
        ("calibration images", "calibration_images"), ("validation images", "val_images"),
        ("images the simulated annotator knows", "oracle_images"),
        ("exact duplicates collapsed", "duplicates_collapsed"),
        ("boxes clipped by a pixel", "clipped_boxes"), ("set aside", "set_aside"),
    )  # fmt: skip
    return [(label, int(data.counts[key])) for label, key in names]
