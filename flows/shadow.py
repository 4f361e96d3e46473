"""Compare champion and challenger on a stream of images, and bring the images most worth a label into the pool."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from flows.autolabel import FoundModel, detections_of, find_model
from flows.pool_sync import list_source, sync_pool
from flows.workspace.module_runner import run_module
from flows.workspace.promotion_log import promotions
from flows.workspace.run_lock import run_lock
from tasks.data.image_decoding import ImageProblem
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.pool_diff import PoolDiff, SourceImage
from tasks.data.schemas import ANNOTATED, INDEX
from tasks.params import Params, load_params, validate_params
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize
from tasks.shadow.compare import COLUMNS, Comparison, compare_stream, read_pool, summary
from tasks.shadow.job import IMAGES, ShadowJob, read_detections
from tasks.shadow.page import render_page
from tasks.storage import files
from tasks.storage.s3 import is_object_uri

PAGE, TABLE, SUMMARY = "index.html", "images.parquet", "summary.json"
_TEACHER = "derived/train/teacher.pth"
_NUM_PICTURES = 24


@dataclass(frozen=True)
class Stream:
    """The images of a stream that the campaign does not know."""

    root: Path
    """Folder that uris are relative to."""
    names: dict[str, tuple[str, str]]
    """File name and uri by image id."""
    num_known: int
    """Images of the pool, of validation, of calibration or with labels, which were left out."""
    set_aside: Sequence[str]
    """Files that are no usable images, with the reason."""


@dataclass(frozen=True)
class ShadowResult:
    """A finished comparison."""

    document: dict[str, Any]
    """Content of ``summary.json``."""
    added: PoolDiff | None
    """What entered the pool; None where nothing was asked to."""


def shadow(
    workspace: Workspace,
    source: str,
    folder: Path,
    challenger_ref: str | None,
    num_added: int,
    on_line: Callable[[str], None],
) -> ShadowResult:
    """Run both models over the stream, and write page, table and summary to ``folder``.

    A killed call goes on where it was. An image that is in the pool already is not compared again, so that a stream may
    be looked at every day.

    Args:
        workspace: a campaign with two models.
        source: folder or s3:// prefix.
        folder: for the results; those of an earlier call are replaced.
        challenger_ref: see ``resolve_model_ref``; None: the newest model, or where that is champion the one before.
        num_added: images, by priority, that are copied into the folder ``pool.images_uri`` and enter the pool.
        on_line: called with each line of output of the models' runs.

    Raises:
        UserError: there is no second model, the two differ in architecture or classes, or the stream is out of reach.
    """
    params = load_params(workspace.params)
    if num_added:
        _require_local_pool(workspace, params)
    with run_lock(workspace):
        champion = find_model(workspace, None)
        challenger = _challenger(workspace, champion, challenger_ref)
        stream = _read_stream(workspace, params, source)
        comparison = _compare(workspace, params, champion, challenger, stream, on_line)
        document = _write(folder, comparison, stream, source, champion, challenger)
    added = _add_to_pool(workspace, params, comparison, stream, num_added) if num_added else None
    return ShadowResult(document, added)


def _challenger(workspace: Workspace, champion: FoundModel, model_ref: str | None) -> FoundModel:
    found = find_model(workspace, model_ref or "@candidate")
    if model_ref is None and found.ref.sha256 == champion.ref.sha256:
        former = [entry.model for entry in promotions(workspace) if entry.model.sha256 != champion.ref.sha256]
        if not former:
            fix = "Run another round, or name a model: --challenger round-0000"
            raise UserError(workspace.root, "the campaign has 1 model, expected 2 to compare", fix)
        found = find_model(workspace, f"/{former[-1].version}")
    if found.ref.sha256 == champion.ref.sha256:
        raise UserError("--challenger", f"version {found.ref.version} is the champion, expected another model")
    ours, theirs = champion.snapshot.raw_params(), found.snapshot.raw_params()
    different = [name for name in ("classes", "model") if ours[name] != theirs[name]]
    if different:
        problem = f"{' and '.join(different)} of {found.snapshot.tag} differ from those of {champion.snapshot.tag}"
        raise UserError("--challenger", f"{problem}, expected the same", "Name a model of the same kind.")
    return found


def _read_stream(workspace: Workspace, params: Params, source: str) -> Stream:
    where = source if is_object_uri(source) else str(Path(source).resolve())
    pool = params.pool.model_copy(update={"images_uri": where})
    listed = list_source(workspace, params.model_copy(update={"pool": pool}))
    if not listed:
        raise UserError(source, "it has 0 images, expected at least 1", "Is the prefix right, and the share mounted?")
    known = _known_ids(workspace)
    names: dict[str, tuple[str, str]] = {}
    problems, num_known = [], 0
    for image in listed:
        if isinstance(image.metadata, ImageProblem):
            problems.append(f"{image.name}: {image.metadata}")
            continue
        image_id = image_id_from_sha256(image.metadata.sha256)
        if image_id in known:
            num_known += 1
        else:
            names.setdefault(image_id, (image.name, _uri(image, source)))
    root = workspace.root if is_object_uri(source) else Path(source).resolve()
    return Stream(root, names, num_known, problems)


def _uri(image: SourceImage, source: str) -> str:
    return image.uri if is_object_uri(source) else image.name


def _known_ids(workspace: Workspace) -> set[str]:
    held_out = [
        files.read_table(path, ANNOTATED, columns=["image_id"])["image_id"].to_pylist()
        for path in (workspace.val, workspace.calibration)
    ]
    pool = files.read_table(workspace.index, INDEX, columns=["image_id"])["image_id"].to_pylist()
    return {*pool, *held_out[0], *held_out[1], *read_labels(workspace.labels).all_annotations}


def _compare(
    workspace: Workspace,
    params: Params,
    champion: FoundModel,
    challenger: FoundModel,
    stream: Stream,
    on_line: Callable[[str], None],
) -> Comparison:
    pool = read_pool(detections_of(workspace, params, champion, on_line))
    document = files.parse_yaml(workspace.params.read_text("utf-8")) | {
        "model": champion.snapshot.raw_params()["model"]
    }
    validate_params(document, f"params.yaml of {champion.snapshot.tag}")
    image_ids = sorted(stream.names)
    key = files.sha256_json(
        [champion.ref.sha256, challenger.ref.sha256, document["model"], document["infer"], str(stream.root), image_ids]
    )
    scratch = workspace.scratch("shadow") / key[:16]
    job = ShadowJob(
        root=stream.root,
        images=scratch / "images.parquet",
        params=scratch / "params.yaml",
        champion=champion.snapshot.cached_path(_TEACHER),
        challenger=challenger.snapshot.cached_path(_TEACHER),
        out=scratch,
    )
    rows = [{"image_id": image_id, "uri": stream.names[image_id][1]} for image_id in image_ids]
    files.write_table(job.images, pa.Table.from_pylist(rows, IMAGES))
    files.write_bytes(job.params, yaml.safe_dump(document, allow_unicode=True).encode())
    files.write_bytes(scratch / "job.json", job.model_dump_json().encode())
    if image_ids:
        _run(workspace, scratch / "job.json", on_line)
    return compare_stream(read_detections(job, COLUMNS), pool, params.classes, params.seed)


def _run(workspace: Workspace, job: Path, on_line: Callable[[str], None]) -> None:
    run_module(workspace, "tasks.shadow.detect", (str(job),), on_line)


def _write(
    folder: Path, comparison: Comparison, stream: Stream, source: str, champion: FoundModel, challenger: FoundModel
) -> dict[str, Any]:
    models = {
        role: f"version {found.ref.version} ({found.snapshot.tag})"
        for role, found in (("champion", champion), ("challenger", challenger))
    }
    facts = {**models, "stream": source, "known": stream.num_known, "set_aside": list(stream.set_aside)}
    document = {**facts, **summary(comparison)}
    table = comparison.table.assign(file_name=[stream.names[image_id][0] for image_id in comparison.table["image_id"]])
    files.write_table(folder / TABLE, pa.Table.from_pandas(table, preserve_index=False))
    page = render_page(comparison, stream.names, stream.root, facts, _NUM_PICTURES)
    files.write_bytes(folder / PAGE, page.encode())
    files.write_json(folder / SUMMARY, document)
    return document


def _require_local_pool(workspace: Workspace, params: Params) -> Path:
    uri = params.pool.images_uri
    if not uri or is_object_uri(uri):
        problem = f"pool.images_uri is {uri!r}, expected a folder for --add"
        raise UserError(workspace.params, problem, "Copy the images there yourself, then run: gleaner pool sync")
    return workspace.root / Path(uri).expanduser()


def _add_to_pool(
    workspace: Workspace, params: Params, comparison: Comparison, stream: Stream, num_added: int
) -> PoolDiff:
    """Copy the first images into the pool's folder under names that do not depend on the call, and sync the pool."""
    pool = _require_local_pool(workspace, params)
    wanted = comparison.table[comparison.table["priority"] > 0].head(num_added)
    for image_id in wanted["image_id"]:
        name, uri = stream.names[image_id]
        if is_object_uri(uri):
            problem = f"{pluralize(num_added, 'image')} of an object store were asked for, expected a folder for --add"
            raise UserError("--add", problem, "Copy them yourself, then run: gleaner pool sync")
        target = pool / "shadow" / f"{image_id}{Path(name).suffix.lower()}"
        if not target.is_file():
            with files.atomic_write(target) as temporary:
                shutil.copyfile(stream.root / uri, temporary)
    return sync_pool(workspace)
