"""Opens, hashes and measures every image of the pool; bad ones are named and set aside.

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

from tasks import files
from tasks.contracts import INDEX, POOL
from tasks.entry import run_stage
from tasks.errors import UserError
from tasks.image_cache import image_cache
from tasks.images import ImageFacts, ImageProblem, inspect_image
from tasks.object_store import ObjectFacts, is_object_uri
from tasks.params import load, load_params
from tasks.paths import Workspace, image_id_of, resolve_uri
from tasks.progress import track
from tasks.sections import PrepareParams
from tasks.seen_images import listed_objects, seen_objects

_log = logging.getLogger(__name__)

_Row = dict[str, Any]


def prepare(params: PrepareParams, *, index: Path, root: Path, out: Path) -> None:
    """Write ``pool.parquet`` (contracts.POOL) and ``quarantine.json`` (list of where = image id, reason).

    Args:
        params: limits on the images.
        index: the pool as it was handed in, contracts.INDEX.
        root: folder the uris are relative to.
        out: folder of the results.

    Raises:
        UserError: the index is unreadable or empty, or no image of it can be used.
    """
    rows = sorted(files.read_table(index, INDEX).to_pylist(), key=lambda row: (row["image_id"], row["uri"]))
    if not rows:
        raise UserError(index, "images in the pool are 0, expected at least 1", "Run gleaner init with images.")
    times_listed = Counter(row["image_id"] for row in rows)
    pool: list[_Row] = []
    quarantine: list[dict[str, str]] = []
    for row, found in _inspected(rows, _Looker(params, Workspace(root), rows)):
        if isinstance(found, ImageFacts) and times_listed[row["image_id"]] > 1:
            found = ImageProblem(f"the image id is listed {times_listed[row['image_id']]} times, expected once")
        if isinstance(found, ImageFacts):
            pool.append(row | {"width_px": found.width_px, "height_px": found.height_px})
        else:
            quarantine.append({"where": row["image_id"], "reason": f"{row['source']} ({row['uri']}): {found}"})
    for entry in quarantine:
        _log.warning("set aside %s: %s", entry["where"], entry["reason"])
    if not pool:
        raise UserError(
            index,
            f"usable images are 0 of {len(rows)}, expected at least 1",
            f"The first one: {quarantine[0]['reason']}. Restore the images with: dvc checkout",
        )
    _log.info("%d images, %d set aside", len(pool), len(quarantine))
    files.write_table(out / "pool.parquet", pa.Table.from_pylist(pool, schema=POOL))
    files.write_json(out / "quarantine.json", quarantine)


class _Looker:
    """Opens images, those of the workspace and those of an object store."""

    def __init__(self, params: PrepareParams, workspace: Workspace, rows: list[_Row]) -> None:
        self._params, self._root = params, workspace.root
        remote = [row["uri"] for row in rows if is_object_uri(row["uri"])]
        self.workers: int | None = None
        self._listed: Mapping[str, ObjectFacts] = {}
        if remote:
            self._listed = listed_objects(remote)
            self.workers = load_params(workspace.params).pool.download_workers
            self._seen = seen_objects(workspace, image_cache(workspace))

    def look(self, row: _Row) -> ImageFacts | ImageProblem:
        """What a row's image turned out to be."""
        try:
            return _checked(row, self._facts(row["uri"]), self._params)
        except ImageProblem as problem:
            return problem

    def _facts(self, uri: str) -> ImageFacts:
        if is_object_uri(uri):
            if uri not in self._listed:
                raise ImageProblem("the object is missing, expected it in the bucket")
            return self._seen.inspect(uri, self._listed[uri].etag, max_pixels=self._params.max_pixels)
        try:
            path = resolve_uri(self._root, uri)
        except ValueError as error:
            raise ImageProblem(str(error)) from None
        return inspect_image(path, max_pixels=self._params.max_pixels)


def _inspected(rows: list[_Row], looker: _Looker) -> Iterator[tuple[_Row, ImageFacts | ImageProblem]]:
    """Each row with what its file turned out to be; decoding runs on all cores, the order stays."""
    with ThreadPoolExecutor(looker.workers) as threads:
        yield from zip(rows, track(threads.map(looker.look, rows), "checking images", total=len(rows)), strict=True)


def _checked(row: _Row, facts: ImageFacts, params: PrepareParams) -> ImageFacts:
    if facts.sha256 != row["sha256"]:
        raise ImageProblem(f"the SHA-256 is {facts.sha256[:12]}…, expected {row['sha256'][:12]}… as in the index")
    if row["image_id"] != image_id_of(facts.sha256):
        raise ImageProblem(f"the image id is {row['image_id']}, expected {image_id_of(facts.sha256)}")
    short_side_px = min(facts.width_px, facts.height_px)
    if short_side_px < params.min_side_px:
        raise ImageProblem(f"the shorter side is {short_side_px} px, expected at least {params.min_side_px}")
    return facts


def _body(workspace: Workspace) -> None:
    params = load(workspace.params, "prepare").prepare
    prepare(params, index=workspace.index, root=workspace.root, out=workspace.derived("prepare"))


def main() -> None:
    """``python -m tasks.prepare``."""
    run_stage("prepare", _body)


if __name__ == "__main__":
    main()
