"""Update the pool from the campaign's image source: ``gleaner pool sync``."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from flows.annotation.batches import all_annotation_batches
from flows.workspace import dvc, git
from flows.workspace.run_lock import run_lock
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_listing import ImageBucket, ImageFolder, is_utf8
from tasks.data.image_metadata_cache import file_metadata_cache, inspect_file, object_metadata_cache
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.pool_diff import PoolDiff, Row, SourceImage, diff_pool
from tasks.data.schemas import ANNOTATED, INDEX
from tasks.params import Params, load_params
from tasks.params.stages import PoolParams
from tasks.runtime.concurrency import map_threads
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import is_object_uri


def sync_pool(workspace: Workspace) -> PoolDiff:
    """Update ``data/index.parquet`` from ``pool.images_uri`` and commit it. It can be repeated after a kill.

    Raises:
        UserError: the source is not set, empty or unavailable, or a run is active.
    """
    params = load_params(workspace.params)
    source = params.pool.images_uri
    if not source:
        fix = "Set it to the directory or s3:// prefix of the images."
        raise UserError(workspace.params, "pool.images_uri is empty, expected where the images come from", fix)
    with run_lock(workspace):
        source_images = list_source(workspace, params)
        if not source_images:
            problem = "images in pool.images_uri are 0, expected at least 1"
            raise UserError(source, problem, "Is the prefix right, and the share mounted? Nothing was changed.")
        index = files.read_table(workspace.index, INDEX).to_pylist()
        source_rows = [row for row in index if _is_from_source(row["uri"], source)]
        other_rows = [row for row in index if not _is_from_source(row["uri"], source)]
        changes, rows = diff_pool(
            source_rows,
            source_images,
            protected_ids=_referenced_ids(workspace),
            heldout_names=_heldout_ids(workspace, source),
            set_aside=_set_aside(workspace),
        )
        rows = sorted((*rows, *_exclude(other_rows, rows)), key=lambda row: row["image_id"])
        if rows != index:
            _copy_new_images(workspace, params.pool, rows)
            files.write_table(workspace.index, pa.Table.from_pylist(rows, schema=INDEX))
        _commit(workspace, changes)
    return changes


def list_source(workspace: Workspace, params: Params) -> list[SourceImage]:
    """List all images of the source; the metadata of known ones is not read again."""
    pool, max_pixels = params.pool, params.prepare.max_pixels
    if is_object_uri(pool.images_uri):
        seen = object_metadata_cache(workspace, image_cache(workspace))
        bucket = ImageBucket(pool.images_uri, seen, num_workers=pool.num_download_workers, max_pixels=max_pixels)
        return [SourceImage(name, bucket.uri_of(name), bucket.metadata_of(name)) for name in bucket.names()]
    root = workspace.root / Path(pool.images_uri).expanduser()
    folder = ImageFolder(root, max_pixels, follow_links=pool.follow_links)
    metadata_cache, names = file_metadata_cache(workspace), [name for name in folder.names() if is_utf8(name)]

    def inspect_name(name: str) -> SourceImage:
        try:
            path = folder.locate(name)
            facts = inspect_file(metadata_cache, str(path), path, max_pixels=max_pixels)
            return SourceImage(name, f"data/images/{image_id_from_sha256(facts.sha256)}{facts.suffix}", facts)
        except ImageProblem as problem:
            return SourceImage(name, "", problem)

    return list(track(map_threads(inspect_name, names), "reading images", total=len(names)))


def _is_from_source(uri: str, source: str) -> bool:
    """Return whether a row of the index belongs to the source, not to a prefix that was used earlier."""
    if is_object_uri(source):
        return uri.startswith(source.rstrip("/") + "/")
    return not is_object_uri(uri)


def _referenced_ids(workspace: Workspace) -> set[str]:
    """Return the ids of images that are labeled, were ever offered for labeling, or belong to calibration."""
    delivered = {image_id for delivery in all_annotation_batches(workspace) for image_id in delivery.image_ids}
    calibration = files.read_table(workspace.calibration, ANNOTATED)["image_id"].to_pylist()
    return {*read_labels(workspace.labels).all_annotations, *delivered, *calibration}


def _heldout_ids(workspace: Workspace, source: str) -> dict[str, str]:
    """Return the validation images' URIs by id; empty where the image is not an object of the source."""
    rows = files.read_table(workspace.val, ANNOTATED).select(["image_id", "uri"]).to_pylist()
    remote = is_object_uri(source)
    return {row["image_id"]: row["uri"] if remote and _is_from_source(row["uri"], source) else "" for row in rows}


def _set_aside(workspace: Workspace) -> dict[str, str]:
    """Return why images were set aside by the import, by id: their annotations are broken, not missing."""
    entries = files.read_json(workspace.import_report).get("set_aside", [])
    return {entry["image_id"]: entry["reason"] for entry in entries if "image_id" in entry}


def _exclude(other_rows: list[Row], rows: list[Row]) -> Iterator[Row]:
    """Return the rows of other sources, without images that this source has too."""
    ids = {row["image_id"] for row in rows}
    return (row for row in other_rows if row["image_id"] not in ids)


def _copy_new_images(workspace: Workspace, pool: PoolParams, rows: list[Row]) -> None:
    """Copy new local images and compare each copy's digest: a file may change while it is read."""
    if is_object_uri(pool.images_uri):
        return
    folder = ImageFolder(workspace.root / Path(pool.images_uri).expanduser(), 0, follow_links=pool.follow_links)
    for row in rows:
        target = workspace.root / row["uri"]
        if is_object_uri(row["uri"]) or target.is_file():
            continue
        path = folder.locate(row["file_name"])
        with files.atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
            if files.sha256_file(temporary) != row["sha256"]:
                raise UserError(
                    path, "the file changed while it was read, expected no change", "Run the command again."
                )


def _commit(workspace: Workspace, changes: PoolDiff) -> None:
    dvc.add(workspace, workspace.index, workspace.images)
    counts = f"{len(changes.added)} added, {len(changes.changed)} changed, {len(changes.removed)} vanished"
    git.commit(workspace, f"Sync the pool: {counts}", git.SOURCE_PATHS)
