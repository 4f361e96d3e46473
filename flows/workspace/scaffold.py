"""``gleaner init``: a campaign workspace, whole or not at all.

A campaign's own ``dvc.yaml``, made from the repository's, and what git and DVC leave alone.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from flows.workspace import dvc, git
from flows.workspace.code_version import is_code, packaged_file, packaged_stages, refresh_code_digests
from flows.workspace.params_template import render_params
from flows.workspace.run_lock import is_workspace
from tasks.data.box_rules import BoxRules
from tasks.data.dataset_source import DatasetSource
from tasks.data.image_listing import ImageBucket
from tasks.data.image_metadata_cache import object_metadata_cache
from tasks.data.initial_split import CampaignData, CampaignPlan, create_campaign_data, examine_source
from tasks.data.paths import Workspace
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import is_object_uri

_PLACEHOLDER_CLASSES = ("object",)

# Where a user's own campaign starts from other numbers than the demo's small drawn digits; --set overrides them.
OWN_DATA_OVERRIDES = (
    "model.short_side_px=256",
    "model.long_side_px=512",
    "augmentation.flip_probability=0.5",
    "train.iterations=300",
    "train.burn_in_iterations=200",
    # For 100 iterations with unlabeled images; the demo has 40.
    "ssl.ema_decay=0.98",
    "ssl.rampup_iterations=40",
)


@dataclass(frozen=True)
class WorkspaceConfig:
    """What ``gleaner init`` is asked for; all else stands in params.yaml."""

    source: DatasetSource
    seed_labels: int | None
    """Images of the seed batch; None: all annotated ones that are left."""
    calibration_images: int
    val_frac: float
    """Share of the annotated images drawn for validation, unless the source brings its own."""
    oracle: bool
    overrides: tuple[str, ...]
    """``section.key=value``, in the order they are applied."""
    imported_at: str
    """ISO 8601 with time zone; the time the seed labels carry."""
    bucket: str | None = None
    """s3:// prefix of the images, which stay there; takes the place of ``source.images``."""


def create_workspace(target: Path, config: WorkspaceConfig, cache: str | None = None) -> CampaignData:
    """Make the workspace ``target``.

    It is built beside its place and renamed at the end: a kill leaves only a hidden folder, which the next
    call clears away.

    Args:
        target: a new or an empty folder.
        config: what it is made of.
        cache: DVC cache shared with other workspaces, see ``dvc.init_dvc``.

    Raises:
        UserError: the target holds something already, or the source or a setting is unusable.
    """
    target = target.absolute()
    _require_empty_target(target)
    staging = target.with_name(f".{target.name}.gleaner-init")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        data = _build_workspace(Workspace(staging), config, cache)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return data


def _require_empty_target(target: Path) -> None:
    if is_workspace(target):
        raise UserError(target, "the folder is a campaign already, expected a new one", "Go on with: gleaner run")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(target, "the place is taken, expected an empty or a new folder", "Choose another name.")


def _build_workspace(workspace: Workspace, config: WorkspaceConfig, cache: str | None) -> CampaignData:
    root = workspace.root
    params = _write_params(workspace, config, _PLACEHOLDER_CLASSES)
    source = _resolve_source(config, params, workspace)
    data = create_campaign_data(source, _data_plan(config, params), workspace)
    _write_params(workspace, _with_pool_source(config, data), data.classes)
    git.init_repository(root)
    dvc.init_dvc(root, cache)
    files.write_bytes(workspace.dvc_yaml, workspace_dvc_yaml().encode())
    files.write_bytes(root / ".gitignore", gitignore_text().encode())
    files.write_bytes(root / ".dvcignore", dvcignore_text().encode())
    refresh_code_digests(workspace)
    dvc.add(workspace, workspace.images, workspace.index, workspace.detections_at_selection, workspace.warm_start)
    git.commit(workspace, f"Start the campaign: {data.counts['seed_images']} seed images")
    return data


def _resolve_source(config: WorkspaceConfig, params: Params, workspace: Workspace) -> DatasetSource:
    """The source, with its images looked at where they are objects."""
    if config.bucket is None:
        return config.source
    metadata_cache = object_metadata_cache(workspace, image_cache(workspace))
    pool, max_pixels = params.pool, params.prepare.max_pixels
    images = ImageBucket(config.bucket, metadata_cache, num_workers=pool.num_download_workers, max_pixels=max_pixels)
    return replace(config.source, images=images)


def _write_params(workspace: Workspace, config: WorkspaceConfig, classes: Sequence[str]) -> Params:
    text = render_params(packaged_file("params.yaml").read_text("utf-8"), classes=classes, overrides=config.overrides)
    files.write_bytes(workspace.params, text.encode())
    return load_params(workspace.params)


def _data_plan(config: WorkspaceConfig, params: Params) -> CampaignPlan:
    return CampaignPlan(
        seed=params.seed,
        seed_images=config.seed_labels,
        calibration_images=config.calibration_images,
        val_frac=config.val_frac,
        oracle=config.oracle,
        imported_at=config.imported_at,
        max_pixels=params.prepare.max_pixels,
        box_rules=BoxRules(
            min_side_px=params.label_validation.min_box_side_px,
            duplicate_iou=params.label_validation.duplicate_iou_threshold,
        ),
    )


def check_import(config: WorkspaceConfig) -> CampaignData:
    """Read and split a source as ``create_workspace`` does, without making anything.

    Raises:
        UserError: the source or a setting is unusable.
    """
    with tempfile.TemporaryDirectory(prefix="gleaner-check-") as folder:
        workspace = Workspace(Path(folder))
        params = _write_params(workspace, config, _PLACEHOLDER_CLASSES)
        return examine_source(_resolve_source(config, params, workspace), _data_plan(config, params))


def _with_pool_source(config: WorkspaceConfig, data: CampaignData) -> WorkspaceConfig:
    """Of an export, the folder of the pool's images, where that holds nothing else."""
    dataset = config.source.dataset
    if dataset is None or config.source.images is not None or data.pool_folder is None:
        return config
    override = pool_source_override(str(dataset / data.pool_folder))
    return replace(config, overrides=(override, *config.overrides))


def pool_source_override(images: str) -> str:
    """The setting that lets ``gleaner pool sync`` find the images again."""
    uri = images if is_object_uri(images) else str(Path(images).absolute())
    return f"pool.images_uri={json.dumps(uri, ensure_ascii=False)}"


def summary_counts(data: CampaignData) -> Sequence[tuple[str, int]]:
    """What a person wants to know of a new campaign, in order."""
    names = (
        ("pool images", "pool_images"), ("seed images", "seed_images"), ("seed boxes", "seed_boxes"),
        ("calibration images", "calibration_images"), ("validation images", "val_images"),
        ("images the simulated annotator knows", "oracle_images"),
        ("exact duplicates collapsed", "duplicates_collapsed"),
        ("boxes clipped by a pixel", "clipped_boxes"), ("set aside", "set_aside"),
    )  # fmt: skip
    return [(label, int(data.counts[key])) for label, key in names]


_DVC_HEADER = """\
# The round: a pure function of the labels and params.yaml. `dvc repro` recomputes what changed.
# code_versions.json holds a digest of the installed source of each stage; `gleaner run` keeps it up to date.
"""
_GITIGNORE = """\
# Written by the round; DVC adds what it keeps itself to .gitignore files further down.
/oracle/
/.gleaner/
/.prefect/
/mlartifacts/
/mlruns/
/mlflow.db*
/deliveries/*/*
!/deliveries/*/delivery.json
!/deliveries/*/manifest.jsonl
.*.tmp
"""
_DVCIGNORE = "__pycache__/\n.gleaner/\n.prefect/\nmlartifacts/\nmlruns/\n.*.tmp\n"


def gitignore_text() -> str:
    """What git never sees."""
    return _GITIGNORE


def dvcignore_text() -> str:
    """What DVC never takes for part of a dependency."""
    return _DVCIGNORE


def workspace_dvc_yaml() -> str:
    """The round's graph: no ``draw``, and a digest in code_versions.json in place of each stage's source files."""
    stages = {name: _replace_code_deps(name, entry) for name, entry in packaged_stages().items() if name != "draw"}
    body = yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    return _DVC_HEADER + body


def _replace_code_deps(stage: str, entry: dict[str, Any]) -> dict[str, Any]:
    kept = {**entry, "deps": [path for path in entry["deps"] if not is_code(path)]}
    kept["params"] = [*entry.get("params", ()), {"code_versions.json": [stage]}]
    return kept
