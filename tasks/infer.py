"""Run the teacher on unlabeled, calibration and labeled images; keep the full posteriors.

Reads  data/images, derived/assemble/unlabeled.parquet, derived/assemble/calibration.parquet,
       derived/assemble/labeled.parquet, derived/train/teacher.pth, derived/train/student.pth, data/warm_start
Writes derived/infer
Params classes, model, infer, train.mixed_precision
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from detectron_ext.committee import disagreement
from detectron_ext.distributed import rank, world_size
from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.region_embedding import sum_by_class
from tasks.data import schemas
from tasks.data.detections import SHARD_PREFIX, ShardKind
from tasks.data.paths import Workspace
from tasks.model.detector import ImageReader, default_device, detect_all, load_detector
from tasks.model.fingerprint import software_fingerprint
from tasks.model.launch import launch
from tasks.params import StageParams, load_stage_params
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
PIECE_IMAGES = 512
"""Images that are detected between two writes: some seconds of a GPU, some ten of a CPU."""


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
    about the pool alone. With several GPUs each has a process, and the pieces are dealt out to them.

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
        launch("infer", detect_pieces, params, root, Members(teacher, second), digest, missing)
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        shard.join_pieces()
        _link_or_copy(shard.path, out / shard.name)
    shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Piece:
    """Some images of a shard, and the file of their detections."""

    images: list[dict[str, str]]
    path: Path


@dataclass(frozen=True)
class Members:
    """State files of the detectors that see every image."""

    teacher: Path
    second: Path | None
    """Whose disagreement with the teacher is measured; None: there is no committee."""


class _Shard:
    """The images of one output file. They are detected in pieces, so that little is lost when a run is killed."""

    def __init__(self, name: str, images: list[dict[str, str]], folder: Path) -> None:
        """Begin; ``folder`` is where finished pieces and shards lie."""
        self.name = name
        self.path = folder / f"{_ids_digest(images)}-{name}"
        chunks = [images[first : first + PIECE_IMAGES] for first in range(0, len(images), PIECE_IMAGES)]
        self.pieces = [Piece(chunk, folder / f"piece-{_ids_digest(chunk)}.parquet") for chunk in chunks]

    def join_pieces(self) -> None:
        """Write the shard, unless an earlier run has, and delete its pieces."""
        if not self.path.is_file():
            tables = [files.read_table(piece.path, schemas.DETECTIONS) for piece in self.pieces]
            files.write_table(self.path, pa.concat_tables(tables))
        for piece in self.pieces:
            piece.path.unlink(missing_ok=True)


def detect_pieces(params: StageParams, root: Path, members: Members, digest: str, pieces: Sequence[Piece]) -> None:
    """Detect and write this process's share of the pieces, one after the other."""
    own = pieces[rank() :: world_size()]
    detectors = load_members(params, members) if own else []
    for number, piece in enumerate(own):
        files.write_table(piece.path, _detect_images(params, detectors, piece.images, root, digest))
        log.info("infer piece %d/%d: %d images", number + 1, len(own), len(piece.images))


def load_members(params: StageParams, members: Members) -> list[PerImageRCNN]:
    """Load the teacher, which describes regions too, and after it the second member, if there is one."""
    teacher = load_detector(params.model, len(params.classes), members.teacher)
    teacher.roi_heads.describes_regions = True
    if members.second is None:
        return [teacher]
    return [teacher, load_detector(params.model, len(params.classes), members.second)]


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
    sections = [params.classes, params.model.model_dump(), params.infer.model_dump(), params.train.mixed_precision]
    device = default_device()
    return files.sha256_json([teacher_digest, sections, device, software_fingerprint(Path(__file__))])[:16]


def _shards(
    kind: ShardKind, tables: Sequence[tuple[Path, pa.Schema]], shard_size: int
) -> list[tuple[str, list[dict[str, str]]]]:
    """File names of the shards, each with its images."""
    columns = ["image_id", "uri"]
    rows = [row for path, schema in tables for row in files.read_table(path, schema, columns=columns).to_pylist()]
    rows.sort(key=lambda row: row["image_id"])
    firsts = range(0, len(rows), shard_size)
    return [(shard_name(n, kind), rows[first : first + shard_size]) for n, first in enumerate(firsts)]


def _ids_digest(images: Sequence[dict[str, str]]) -> str:
    return files.sha256_json([image["image_id"] for image in images])[:16]


def _detect_images(
    params: StageParams, detectors: Sequence[Any], images: Sequence[dict[str, str]], root: Path, digest: str
) -> pa.Table:
    read = ImageReader(root, images, prefetch_remote=True)

    def read_pool_image(image: dict[str, str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            return read(image["uri"])
        except (OSError, ValueError) as error:
            raise UserError(
                image["uri"],
                f"the image is unreadable ({error}), expected what prepare saw",
                "Restore it (dvc checkout), or run: dvc repro prepare",
            ) from None

    results = detect_all(
        detectors,
        images,
        read_pool_image,
        params.model,
        batch_size=max(params.infer.batch_size // num_micro_batches(), 1),
        mixed_precision=params.train.mixed_precision,
    )
    rows = [_row(image["image_id"], found, params.infer.score_threshold, digest) for image, found in results]
    rows.sort(key=lambda row: row["image_id"])
    return pa.Table.from_pylist(rows, schemas.DETECTIONS)


def _row(image_id: str, by_member: Sequence[Detections], score_threshold: float, digest: str) -> dict[str, Any]:
    all_found, *others = by_member
    found = all_found.filter_by_score(score_threshold)
    between = disagreement(found, others[0].filter_by_score(score_threshold)) if others else None
    region_class_ids, region_features = sum_by_class(found.region_features, found.scores, found.class_ids)
    return {
        "image_id": image_id,
        "boxes_xyxy": found.boxes_xyxy.ravel(),
        "scores": found.scores,
        "class_ids": found.class_ids,
        "class_probs": found.class_probs.astype(np.float16).ravel(),
        "residual_mass": float(all_found.scores[all_found.scores < score_threshold].sum()),
        "embedding": found.embedding.astype(np.float16),
        "stability": found.stability,
        "region_class_ids": region_class_ids,
        "region_features": region_features.astype(np.float16).ravel(),
        "box_disagreement": between.boxes if between else None,
        "class_disagreement": between.classes if between else None,
        "model_digest": digest,
    }


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
    """``python -m tasks.infer``."""
    stage_main("infer", _body)


if __name__ == "__main__":
    main()
