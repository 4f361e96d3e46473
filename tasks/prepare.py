"""Open, hash and measure every image of the pool; set aside those that cannot be used, with the reason.

Reads  data/index.parquet, data/images
Writes derived/prepare
Params prepare
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.data.image_metadata_cache import list_existing_objects, object_metadata_cache
from tasks.data.images import ImageMetadata, ImageProblem, inspect_image
from tasks.data.paths import Workspace, image_id_from_sha256, resolve_uri
from tasks.data.schemas import INDEX, POOL
from tasks.params import load_params, load_stage_params
from tasks.params.stages import PrepareParams
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.runtime.stage_main import stage_main
from tasks.storage import files
from tasks.storage.image_cache import image_cache
from tasks.storage.s3 import ObjectMetadata, is_object_uri

_log = logging.getLogger(__name__)

_Row = dict[str, Any]


def prepare(params: PrepareParams, *, index: Path, root: Path, out: Path) -> None:
    """Write ``pool.parquet`` (schemas.POOL) and ``quarantine.json`` (list of where = image id, reason).

    Args:
        params: limits on the images.
        index: the pool index, schemas.INDEX.
        root: folder the uris are relative to.
        out: folder of the results.

    Raises:
        UserError: the index is unreadable or empty, or no image of it can be used.
    """
    rows = sorted(files.read_table(index, INDEX).to_pylist(), key=lambda row: (row["image_id"], row["uri"]))
    if not rows:
        raise UserError(index, "images in the pool are 0, expected at least 1", "Run gleaner init with images.")
    listing_counts = Counter(row["image_id"] for row in rows)
    pool: list[_Row] = []
    quarantine: list[dict[str, str]] = []
    for row, found in _inspect_all(rows, _ImageInspector(params, Workspace(root), rows)):
        if isinstance(found, ImageMetadata) and listing_counts[row["image_id"]] > 1:
            found = ImageProblem(f"the image id is listed {listing_counts[row['image_id']]} times, expected once")
        if isinstance(found, ImageMetadata):
            pool.append(row | {"width_px": found.width_px, "height_px": found.height_px})
        else:
            quarantine.append({"item": row["image_id"], "reason": f"{row['file_name']} ({row['uri']}): {found}"})
    for entry in quarantine:
        _log.warning("set aside %s: %s", entry["item"], entry["reason"])
    if not pool:
        raise UserError(
            index,
            f"usable images are 0 of {len(rows)}, expected at least 1",
            f"The first one: {quarantine[0]['reason']}. Restore the images with: dvc checkout",
        )
    _log.info("%d images, %d set aside", len(pool), len(quarantine))
    files.write_table(out / "pool.parquet", pa.Table.from_pylist(pool, schema=POOL))
    files.write_json(out / "quarantine.json", quarantine)


class _ImageInspector:
    """Open images of the workspace and of an object store."""

    def __init__(self, params: PrepareParams, workspace: Workspace, rows: list[_Row]) -> None:
        self._params, self._root = params, workspace.root
        remote = [row["uri"] for row in rows if is_object_uri(row["uri"])]
        self.num_workers: int | None = None
        self._objects: Mapping[str, ObjectMetadata] = {}
        if remote:
            self._objects = list_existing_objects(remote)
            self.num_workers = load_params(workspace.params).pool.num_download_workers
            self._metadata_cache = object_metadata_cache(workspace, image_cache(workspace))

    def inspect(self, row: _Row) -> ImageMetadata | ImageProblem:
        """Return the metadata of a row's image, or the reason why it cannot be used."""
        try:
            return _validate(row, self._metadata(row["uri"]), self._params)
        except ImageProblem as problem:
            return problem

    def _metadata(self, uri: str) -> ImageMetadata:
        if is_object_uri(uri):
            if uri not in self._objects:
                raise ImageProblem("the object is missing, expected it in the bucket")
            return self._metadata_cache.inspect(uri, self._objects[uri].etag, max_pixels=self._params.max_pixels)
        try:
            path = resolve_uri(self._root, uri)
        except ValueError as error:
            raise ImageProblem(str(error)) from None
        return inspect_image(path, max_pixels=self._params.max_pixels)


def _inspect_all(rows: list[_Row], inspector: _ImageInspector) -> Iterator[tuple[_Row, ImageMetadata | ImageProblem]]:
    """Yield each row with the metadata of its file, in the order of the rows; decoding runs on all cores."""
    with ThreadPoolExecutor(inspector.num_workers) as threads:
        yield from zip(
            rows, track(threads.map(inspector.inspect, rows), "checking images", total=len(rows)), strict=True
        )


def _validate(row: _Row, metadata: ImageMetadata, params: PrepareParams) -> ImageMetadata:
    if metadata.sha256 != row["sha256"]:
        raise ImageProblem(f"the SHA-256 is {metadata.sha256[:12]}…, expected {row['sha256'][:12]}… as in the index")
    if row["image_id"] != image_id_from_sha256(metadata.sha256):
        raise ImageProblem(f"the image id is {row['image_id']}, expected {image_id_from_sha256(metadata.sha256)}")
    short_side_px = min(metadata.width_px, metadata.height_px)
    if short_side_px < params.min_image_side_px:
        raise ImageProblem(f"the shorter side is {short_side_px} px, expected at least {params.min_image_side_px}")
    return metadata


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "prepare").prepare
    prepare(params, index=workspace.index, root=workspace.root, out=workspace.derived("prepare"))


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("prepare", _body)


if __name__ == "__main__":
    main()
