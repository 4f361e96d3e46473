"""Open, hash and measure every image of pool and validation set; set aside those that cannot be used, with the reason.

Reads  data/index.parquet, data/val.parquet, data/images
Writes derived/prepare
Params prepare
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.image_decoding import ImageProblem
from tasks.data.image_metadata_cache import (
    ImageMetadataCache,
    file_version,
    inspect_file,
    object_metadata_cache,
    object_versions,
    workspace_metadata_cache,
)
from tasks.data.images import ImageMetadata
from tasks.data.paths import Workspace, image_id_from_sha256, resolve_uri
from tasks.data.row_order import sort_by_image
from tasks.data.schemas import ANNOTATED, INDEX, POOL, UNLABELED
from tasks.model.engines.ray_images import ImageJob, inspect_on_ray
from tasks.params import load_params, load_stage_params
from tasks.params.stages import InferParams, PrepareParams
from tasks.runtime.concurrency import map_threads
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.runtime.stage_main import stage_main
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import SCHEME, is_object_uri

_log = logging.getLogger(__name__)

_Row = dict[str, Any]
_ROWS_AT_ONCE = 4096


def prepare(
    params: PrepareParams, *, index: Path, val: Path, root: Path, out: Path, engine: InferParams | None = None
) -> None:
    """Write ``pool.parquet`` (schemas.POOL), ``val.parquet`` (schemas.UNLABELED) and ``quarantine.json``.

    The last one lists the images of both that cannot be used: item (image id) and reason. An image is decoded once; as
    long as its file keeps size and time of change, later calls take what was found then.

    Args:
        params: limits on the images.
        index: the pool index, schemas.INDEX; calibration images are in it.
        val: the fixed validation set, schemas.ANNOTATED.
        root: folder the uris are relative to.
        out: folder of the results.
        engine: where images are opened that are new or have changed; None: on this machine. It changes no byte.

    Raises:
        UserError: an input is unreadable or empty, or none of its images can be used.
    """
    table = sort_by_image(files.read_table(index, INDEX), "uri").combine_chunks()
    if not table.num_rows:
        raise UserError(index, "images in the pool are 0, expected at least 1", "Run gleaner init with images.")
    val_rows = files.read_table(val, ANNOTATED).select(UNLABELED.names).to_pylist()
    uris = pa.chunked_array([*table["uri"].chunks, pa.array([row["uri"] for row in val_rows], pa.string())])
    inspector = _ImageInspector(params, Workspace(root), uris)
    if engine is not None and engine.engine == "ray":
        inspector.open_on_ray(engine, uris, index)
    val_rows = [
        row | {"etag": etag} for row, etag in zip(val_rows, inspector.etags[len(table) :].to_pylist(), strict=True)
    ]
    pool, quarantine = _check_pool(table, inspector)
    _require_any(pool.num_rows, index, table.num_rows, quarantine)
    usable_val, val_quarantine = _check_val(val_rows, inspector)
    _require_any(len(usable_val), val, len(val_rows), val_quarantine)
    for entry in (*quarantine, *val_quarantine):
        _log.warning("set aside %s: %s", entry["item"], entry["reason"])
    _log.info("%d images, %d set aside", pool.num_rows, len(quarantine))
    _log.info("%d validation images, %d set aside", len(usable_val), len(val_quarantine))
    files.write_table(out / "pool.parquet", pool)
    files.write_table(out / "val.parquet", pa.Table.from_pylist(usable_val, schema=UNLABELED))
    files.write_json(out / "quarantine.json", [*quarantine, *val_quarantine])


def _check_pool(table: pa.Table, inspector: "_ImageInspector") -> tuple[pa.Table, list[dict[str, str]]]:
    """Return the usable images of the sorted index, schemas.POOL, and why the others are not.

    Rows become objects a few thousand at a time: those of a whole pool would take a gigabyte per million.
    """
    times_listed = _times_listed(table["image_id"])
    sides_px = np.zeros((table.num_rows, 2), dtype=np.int32)
    quarantine: list[dict[str, str]] = []
    with_etags = table.append_column("etag", inspector.etags[: len(table)])
    rows = (row for batch in with_etags.to_batches(_ROWS_AT_ONCE) for row in batch.to_pylist())
    inspected = inspector.map(inspector.inspect, rows, "checking images", total=table.num_rows)
    for number, (row, found) in enumerate(inspected):
        if isinstance(found, ImageMetadata) and row["image_id"] in times_listed:
            found = ImageProblem(f"the image id is listed {times_listed[row['image_id']]} times, expected once")
        if isinstance(found, ImageMetadata):
            sides_px[number] = found.width_px, found.height_px
        else:
            quarantine.append({"item": row["image_id"], "reason": f"{row['file_name']} ({row['uri']}): {found}"})
    for column, name in enumerate(("width_px", "height_px")):
        table = table.append_column(name, pa.array(sides_px[:, column]))
    if quarantine:
        table = table.filter(pa.array(sides_px[:, 0] > 0))
    return table.select(POOL.names).cast(POOL), quarantine


def _times_listed(sorted_ids: pa.ChunkedArray) -> Counter[str]:
    """Count the ids that stand next to their equal."""
    repeated = pc.equal(sorted_ids.slice(1), sorted_ids.slice(0, len(sorted_ids) - 1))
    again = sorted_ids.slice(1).filter(repeated).to_pylist()
    return Counter([*again, *set(again)])


def _check_val(rows: list[_Row], inspector: "_ImageInspector") -> tuple[list[_Row], list[dict[str, str]]]:
    """Return the usable validation images, and why the others are not."""
    usable: list[_Row] = []
    quarantine: list[dict[str, str]] = []
    checked = inspector.map(inspector.inspect_labeled, rows, "checking validation images", total=len(rows))
    for row, found in checked:
        if isinstance(found, ImageMetadata):
            usable.append({name: row[name] for name in UNLABELED.names})
        else:
            quarantine.append({"item": row["image_id"], "reason": f"validation image {row['uri']}: {found}"})
    return usable, quarantine


def _require_any(num_usable: int, where: Path, num_listed: int, quarantine: list[dict[str, str]]) -> None:
    if not num_usable:
        first = f"The first one: {quarantine[0]['reason']}. " if quarantine else ""
        problem = f"usable images are 0 of {num_listed}, expected at least 1"
        raise UserError(where, problem, f"{first}Restore the images with: dvc checkout")


class _ImageInspector:
    """Open images of the workspace and of an object store."""

    def __init__(self, params: PrepareParams, workspace: Workspace, uris: pa.ChunkedArray) -> None:
        self._params, self._root = params, workspace.root
        self.num_workers: int | None = None
        self.etags = pa.nulls(len(uris), pa.string())
        """Of the objects among ``uris``; null: it is missing, or no object."""
        self._object_cache: ImageMetadataCache | None = None
        if pc.any(pc.starts_with(uris, SCHEME)).as_py():
            self.etags = object_versions(uris)
            self.num_workers = load_params(workspace.params).pool.num_download_workers
            self._object_cache = object_metadata_cache(workspace, image_cache(workspace))
        self._file_cache = workspace_metadata_cache(workspace)

    def open_on_ray(self, engine: InferParams, uris: pa.ChunkedArray, index: Path) -> None:
        """Fill the caches with what they lack; nodes must see ``index``."""
        etag_of = dict(zip(uris.to_pylist(), self.etags.to_pylist(), strict=True))
        for are_objects, cache in ((False, self._file_cache), (True, self._object_cache)):
            images = [
                (uri, version)
                for uri, etag in etag_of.items()
                if is_object_uri(uri) == are_objects and (version := self._version(uri, etag)) is not None
            ]
            if cache is None:
                continue
            unknown = [one for one in images if not cache.is_known(*one, max_pixels=self._params.max_pixels)]
            if unknown:
                threads = (self.num_workers or 1) if are_objects else 1
                seen = index.resolve(), files.sha256_file(index)
                job = ImageJob(self._root.resolve(), self._params.max_pixels, threads, seen)
                inspect_on_ray(engine, job, unknown, cache.add)

    def _version(self, uri: str, etag: str | None) -> str | None:
        """Return what changes whenever the image's bytes do; None: it is missing."""
        if is_object_uri(uri):
            return etag
        try:
            return file_version(resolve_uri(self._root, uri))
        except (ValueError, ImageProblem):
            return None

    def inspect(self, row: _Row) -> ImageMetadata | ImageProblem:
        """Return the metadata of the image of a row of the index, or the reason why it cannot be used."""
        try:
            metadata = self._metadata(row)
            if metadata.sha256 != row["sha256"]:
                raise ImageProblem(f"the SHA-256 is {metadata.sha256[:12]}…, expected {row['sha256'][:12]}…")
            return _validate(row, metadata, self._params)
        except ImageProblem as problem:
            return problem

    def inspect_labeled(self, row: _Row) -> ImageMetadata | ImageProblem:
        """Do the same for an image with boxes, which are in pixels of the size that its row states."""
        try:
            metadata = _validate(row, self._metadata(row), self._params)
            size, stated = (metadata.width_px, metadata.height_px), (row["width_px"], row["height_px"])
            if size != stated:
                found = f"the size is {size[0]} x {size[1]} px"
                raise ImageProblem(f"{found}, expected {stated[0]} x {stated[1]} px as when its boxes were read")
            return metadata
        except ImageProblem as problem:
            return problem

    def _metadata(self, row: _Row) -> ImageMetadata:
        uri = row["uri"]
        if is_object_uri(uri):
            if self._object_cache is None or row["etag"] is None:
                raise ImageProblem("the object is missing, expected it in the bucket")
            return self._object_cache.inspect(uri, row["etag"], max_pixels=self._params.max_pixels)
        try:
            path = resolve_uri(self._root, uri)
        except ValueError as error:
            raise ImageProblem(str(error)) from None
        return inspect_file(self._file_cache, uri, path, max_pixels=self._params.max_pixels)

    def map(
        self,
        inspect: Callable[[_Row], ImageMetadata | ImageProblem],
        rows: Iterable[_Row],
        title: str,
        *,
        total: int,
    ) -> Iterable[tuple[_Row, ImageMetadata | ImageProblem]]:
        """Yield each row with what ``inspect`` finds, in the order of the rows; decoding runs on all cores."""
        found = map_threads(lambda row: (row, inspect(row)), rows, num_workers=self.num_workers)
        return track(found, title, total=total)


def _validate(row: _Row, metadata: ImageMetadata, params: PrepareParams) -> ImageMetadata:
    if row["image_id"] != image_id_from_sha256(metadata.sha256):
        raise ImageProblem(f"the image id is {row['image_id']}, expected {image_id_from_sha256(metadata.sha256)}")
    short_side_px = min(metadata.width_px, metadata.height_px)
    if short_side_px < params.min_image_side_px:
        raise ImageProblem(f"the shorter side is {short_side_px} px, expected at least {params.min_image_side_px}")
    return metadata


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "prepare").prepare
    prepare(
        params,
        index=workspace.index,
        val=workspace.val,
        root=workspace.root,
        out=workspace.derived("prepare"),
        engine=load_params(workspace.params).infer,
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("prepare", _body)


if __name__ == "__main__":
    main()
