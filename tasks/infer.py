"""Run the teacher on unlabeled, calibration and labeled images; keep the full posteriors.

Reads  data/images, derived/assemble/unlabeled.parquet, derived/assemble/calibration.parquet,
       derived/assemble/labeled.parquet, derived/train/teacher.pth, derived/train/student.pth, data/warm_start
Writes derived/infer
Params classes, model, infer.batch_size, infer.shard_size, infer.score_threshold, infer.committee,
       infer.objectness_entropy_frac, infer.backend, infer.backend_precision, infer.backend_calibration_images,
       train.mixed_precision
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.data import schemas
from tasks.data.detections import SHARD_PREFIX, ShardKind
from tasks.data.paths import Workspace
from tasks.model.detector import default_device
from tasks.model.engines.detection_job import DetectionJob, Piece, job_fingerprint, load_members, run_local
from tasks.model.engines.program import require_backend, write_program
from tasks.model.engines.ray_pool import run_on_ray
from tasks.params import StageParams, load_stage_params
from tasks.params.stages import InferParams
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
_PLAN = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
PIECE_IMAGES = 512
"""Images that are detected between two writes: some seconds of a GPU, some ten of a CPU."""
_RESULT_PARAMS = (
    *("batch_size", "shard_size", "score_threshold", "committee", "objectness_entropy_frac"),
    *("backend", "backend_precision", "backend_calibration_images"),
)
"""Those of section infer that the files depend on; dvc.yaml names them. The engine changes no byte."""


def infer(
    params: StageParams,
    *,
    root: Path,
    unlabeled: Path,
    calibration: Path,
    labeled: Path,
    teacher: Path,
    second: Path | None = None,
    scratch: Path,
    out: Path,
) -> None:
    """Write detections in shards, sorted by image id; a killed run repeats at most ``PIECE_IMAGES`` per GPU.

    Labeled images have shards of their own: strategies compare the pool with what is labeled, but the metrics are
    about the pool alone. ``infer.engine`` says where the pieces are detected; the files are the same everywhere.

    Args:
        params: sections classes, model, infer and train.
        root: folder that image uris are relative to.
        unlabeled: schemas.UNLABELED.
        calibration: schemas.ANNOTATED.
        labeled: schemas.ANNOTATED.
        teacher: state file.
        second: state file of the committee's second member; None: there is no committee.
        scratch: finished pieces and shards of an unfinished run.
        out: output folder.
    """
    digest = files.sha256_file(teacher)
    second_digest = files.sha256_file(second) if second is not None else ""
    size = params.infer.shard_size
    finished_folder = scratch / _input_key(params, digest + second_digest)
    shards = [
        _Shard(name, images, finished_folder)
        for name, images in (
            *_shards("pool", [(unlabeled, schemas.UNLABELED), (calibration, schemas.ANNOTATED)], size),
            *_shards("labeled", [(labeled, schemas.ANNOTATED)], size),
        )
    ]
    missing = [piece for shard in shards if not shard.path.is_file() for piece in shard.pieces]
    missing = [piece for piece in missing if not piece.path.is_file()]
    if missing:
        members = [(teacher.resolve(), digest), *([(second.resolve(), second_digest)] if second is not None else [])]
        batch_size = max(params.infer.batch_size // num_micro_batches(), 1)
        job = DetectionJob(params, root.resolve(), tuple(members), batch_size)
        if params.infer.backend != "torch":
            job = _with_programs(job, missing[0].rows, calibration, finished_folder.resolve())
        _run(params.infer, job, missing)
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        shard.join_pieces()
        _link_or_copy(shard.path, out / shard.name)
    shutil.rmtree(scratch, ignore_errors=True)


def _with_programs(job: DetectionJob, images: pa.Table, calibration: Path, folder: Path) -> DetectionJob:
    """Write the programs of the members that an earlier run has not written, and return the job that uses them."""
    require_backend(job.params.infer)
    paths = [folder / f"program-{digest[:16]}.onnx" for _, digest in job.members]
    calibration_images = _read_plan(calibration, schemas.ANNOTATED)
    for path, (weights, _) in zip(paths, job.members, strict=True):
        if not path.is_file():
            [detector] = load_members(job.params, [weights])
            write_program(job.params, detector, job.root, images, calibration_images, path)
    return replace(job, programs=tuple((path, files.sha256_file(path)) for path in paths))


def _run(infer_params: InferParams, job: DetectionJob, pieces: Sequence[Piece]) -> None:
    if infer_params.engine == "ray":
        run_on_ray(infer_params, job, pieces)
    else:
        run_local(job, pieces)


class _Shard:
    """The images of one output file. They are detected in pieces, so that little is lost when a run is killed."""

    def __init__(self, name: str, images: pa.Table, folder: Path) -> None:
        """Begin; ``folder`` is where finished pieces and shards lie."""
        self.name = name
        self.path = folder / f"{_ids_digest(images)}-{name}"
        firsts = range(0, len(images), PIECE_IMAGES)
        chunks = [images.take(np.arange(first, min(first + PIECE_IMAGES, len(images)))) for first in firsts]
        self.pieces = [Piece(chunk, folder / f"piece-{_ids_digest(chunk)}.parquet") for chunk in chunks]

    def join_pieces(self) -> None:
        """Write the shard, unless an earlier run has, and delete its pieces."""
        if not self.path.is_file():
            tables = [files.read_table(piece.path, schemas.DETECTIONS) for piece in self.pieces]
            files.write_table(self.path, pa.concat_tables(tables))
        for piece in self.pieces:
            piece.path.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a finished shard its second name; a move would lose it when DVC empties the folder of a killed run."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def shard_name(number: int, kind: ShardKind = "pool") -> str:
    """Return the file name of a shard, number from 0; wide enough that names sort like numbers up to a million."""
    return f"{SHARD_PREFIX[kind]}-{number:06d}.parquet"


def _input_key(params: StageParams, teacher_digest: str) -> str:
    """Digest of everything that decides the detections of an image."""
    infer_section = params.infer.model_dump(include=set(_RESULT_PARAMS))
    sections = [params.classes, params.model.model_dump(), infer_section, params.train.mixed_precision]
    return files.sha256_json([teacher_digest, sections, default_device(), job_fingerprint(params.infer)])[:16]


def _shards(kind: ShardKind, tables: Sequence[tuple[Path, pa.Schema]], shard_size: int) -> list[tuple[str, pa.Table]]:
    """File names of the shards, each with its images: ``image_id`` and ``uri``."""
    parts = [_read_plan(path, schema) for path, schema in tables]
    rows = pa.concat_tables(parts).sort_by("image_id").combine_chunks()
    firsts = range(0, len(rows), shard_size)
    return [(shard_name(n, kind), rows.slice(first, shard_size)) for n, first in enumerate(firsts)]


def _read_plan(path: Path, schema: pa.Schema) -> pa.Table:
    return files.read_table(path, schema, columns=_PLAN.names).cast(_PLAN)


def _ids_digest(images: pa.Table) -> str:
    return files.sha256_json(images["image_id"].to_pylist())[:16]


def _second_member(workspace: Workspace, committee: str) -> Path | None:
    """Return the state file of the committee's second member; in the first round the student stands in."""
    if committee == "none":
        return None
    previous = workspace.warm_start / "teacher.pth"
    if committee == "previous_teacher" and previous.is_file():
        return previous
    return workspace.derived("train") / "student.pth"


def _body(workspace: Workspace) -> None:
    keep_freed_memory()
    assembled = workspace.derived("assemble")
    params = load_stage_params(workspace.params, "classes", "model", "infer", "train")
    infer(
        params,
        root=workspace.root,
        unlabeled=assembled / "unlabeled.parquet",
        calibration=assembled / "calibration.parquet",
        labeled=assembled / "labeled.parquet",
        teacher=workspace.derived("train") / "teacher.pth",
        second=_second_member(workspace, params.infer.committee),
        scratch=workspace.scratch("infer"),
        out=workspace.derived("infer"),
    )


def main() -> None:
    """``python -m tasks infer``."""
    stage_main("infer", _body)


if __name__ == "__main__":
    main()
