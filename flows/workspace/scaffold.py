"""Create a campaign workspace: its folder, repositories, data, ``dvc.yaml`` and ignore files.

``tasks.params.template`` writes its ``params.yaml``.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flows.workspace import dvc, git
from flows.workspace.dvc import is_code, packaged_file, packaged_stages, refresh_code_digests
from flows.workspace.run_lock import is_workspace
from tasks.data.box_rules import BoxRules
from tasks.data.dataset_source import DatasetSource
from tasks.data.image_listing import ImageBucket
from tasks.data.image_metadata_cache import object_metadata_cache
from tasks.data.initial_split import CampaignData, CampaignPlan, create_campaign_data, examine_source
from tasks.data.paths import Workspace
from tasks.data.seed_draw import SeedSize
from tasks.params import Params, load_params
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import is_object_uri

_PLACEHOLDER_CLASSES = ("object",)
_UNUSABLE_CHARACTERS = re.compile(r"['?{}\x00-\x1f\x7f]")
_MAX_NAME_BYTES = 200  # file systems take 255; hidden folders beside it, and archives of it, have longer names
"""In a path: MLflow writes it into SQL text, SQLite's URL ends at ?, DVC fills in {}, and no table shows the others."""


@dataclass(frozen=True)
class WorkspaceConfig:
    """Options of ``gleaner init``; everything else is in params.yaml."""

    source: DatasetSource
    seed_labels: SeedSize | None
    """Images of the seed batch: their number, or the rule they are drawn by; None: all annotated ones that are left."""
    calibration_images: int
    val_frac: float
    """Fraction of the annotated images drawn for validation, unless the source has its own validation images."""
    oracle: bool
    overrides: tuple[str, ...]
    """``section.key=value``, in the order they are applied."""
    imported_at: str
    """ISO 8601 with time zone; time stamp of the seed labels."""
    bucket: str | None = None
    """s3:// prefix of the images, which are not copied; replaces ``source.images``."""


def create_workspace(target: Path, config: WorkspaceConfig, cache: str | None = None) -> CampaignData:
    """Create the workspace ``target``, completely or not at all.

    It is built in a hidden folder beside the target and renamed at the end. After a kill only the hidden folder is
    left, which the next call removes.

    Args:
        target: a new or an empty folder.
        config: source, split and parameters.
        cache: DVC cache shared with other workspaces, see ``dvc.init_dvc``.

    Returns:
        The data it was filled with.

    Raises:
        UserError: the target is not empty, its path is unusable, or the source or a parameter is not allowed.
    """
    target = target.absolute()
    _require_usable_path(target)
    _require_empty_target(target)
    _require_writable_parent(target)
    staging = target.with_name(f".{target.name}.gleaner-init")
    with _only_one(staging.with_name(f"{staging.name}.lock"), target):
        _require_empty_target(target)  # another one may have just finished
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            data = _build_workspace(Workspace(staging), config, cache)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return data


@contextmanager
def _only_one(lock: Path, target: Path) -> Iterator[None]:
    """Keep a second call for the same folder out; the lock ends with the process, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock, timeout=0)
    try:
        file_lock.acquire()
    except Timeout:
        raise UserError(target, "another gleaner init makes it, expected one at a time", "Let it finish.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file_lock.release()


def _require_writable_parent(target: Path) -> None:
    """Refuse at once what would fail after all the work, when the finished folder gets its name."""
    if target.is_mount():
        fix = f"A volume cannot be replaced. Name a folder inside it: {target / 'campaign'}"
        raise UserError(target, "the folder is a mount point, expected a folder of a volume", fix)
    parent = next(folder for folder in target.parents if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(parent, "the folder cannot be written, expected one of yours", "Choose another place.")


def _require_usable_path(target: Path) -> None:
    length = len(os.fsencode(target.name))
    if length > _MAX_NAME_BYTES:
        problem = f"its name has {length} bytes, expected at most {_MAX_NAME_BYTES}"
        raise UserError(target, problem, "Choose a shorter name.")
    for path in (target, target.resolve()):
        found = _UNUSABLE_CHARACTERS.search(str(path))
        if found:
            problem = f"the path contains {found[0]!r}, expected none of ' ? {{ }} and no control characters"
            raise UserError(path, problem, "MLflow, SQLite or DVC cannot use such a path. Choose another folder.")


def _require_empty_target(target: Path) -> None:
    if is_workspace(target):
        raise UserError(target, "the folder is a campaign already, expected a new one", "Continue it with: gleaner run")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(target, "the folder is not empty, expected an empty or a new one", "Choose another name.")


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
    """Return the source; where its images are objects in a bucket, with their metadata."""
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
    """Return the override by which ``gleaner pool sync`` finds the images again."""
    uri = images if is_object_uri(images) else str(Path(images).absolute())
    return f"pool.images_uri={json.dumps(uri, ensure_ascii=False)}"


def summary_counts(data: CampaignData) -> Sequence[tuple[str, int]]:
    """Return the counts that ``gleaner init`` prints, each with its title."""
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
!/deliveries/*/refreshed.jsonl
.*.tmp
"""
_DVCIGNORE = "__pycache__/\n.gleaner/\n.prefect/\nmlartifacts/\nmlruns/\n.*.tmp\n"


def gitignore_text() -> str:
    """Return the text of ``.gitignore``."""
    return _GITIGNORE


def dvcignore_text() -> str:
    """Return the text of ``.dvcignore``: files that are never part of a dependency."""
    return _DVCIGNORE


def workspace_dvc_yaml() -> str:
    """Return the text of ``dvc.yaml``: a digest in code_versions.json replaces the source files of each stage."""
    stages = {name: _replace_code_deps(name, entry) for name, entry in packaged_stages().items()}
    body = yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    return _DVC_HEADER + body


def _replace_code_deps(stage: str, entry: dict[str, Any]) -> dict[str, Any]:
    kept = {**entry, "deps": [path for path in entry["deps"] if not is_code(path)]}
    kept["params"] = [*entry.get("params", ()), {"code_versions.json": [stage]}]
    return kept
