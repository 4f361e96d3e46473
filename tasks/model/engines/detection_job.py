"""The work that an engine deals out, pieces of the pool, and the engine of one machine, ``local``."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from detectron_ext.committee import disagreement
from detectron_ext.distributed import rank, world_size
from detectron_ext.embeddings import sum_by_class
from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from tasks.data import schemas
from tasks.model.detector import AnyDetector, ImageReader, detect_all, load_detector
from tasks.model.engines.program import load_program, program_fingerprint
from tasks.model.fingerprint import software_fingerprint
from tasks.model.launch import launch
from tasks.params import StageParams
from tasks.params.stages import InferParams
from tasks.storage import files


@dataclass(frozen=True)
class Piece:
    """Some images of a shard, and the file of their detections."""

    rows: pa.Table
    """With ``image_id`` and ``uri``; of its own, not a slice of the pool, so that little is sent to another process."""
    path: Path

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def uris(self) -> Sequence[str]:
        """The images."""
        return list(self.rows["uri"].to_pylist())

    @property
    def images(self) -> list[dict[str, str]]:
        """The rows as dictionaries, made when they are asked for: the whole pool's take half a gigabyte per million."""
        return list(self.rows.to_pylist())


@dataclass(frozen=True)
class DetectionJob:
    """What every piece has in common. Can be pickled; a process calls ``load`` once, and the result for each piece.

    Args:
        params: sections classes, model, infer and train.
        root: folder that image uris are relative to.
        members: state file and sha256 of the teacher, and of the committee's second member, if there is one. The
            teacher's digest is written beside every detection.
        batch_size: images per forward pass.
        programs: file and sha256 of each member's program, where ``infer.backend`` is not torch.
    """

    params: StageParams
    root: Path
    members: tuple[tuple[Path, str], ...]
    batch_size: int
    programs: tuple[tuple[Path, str], ...] = ()

    def load(self) -> Callable[[Piece], None]:
        """Load the detectors, and return the function that detects and writes a piece."""
        detectors = self._load_detectors()
        return lambda piece: files.write_table(piece.path, detect_images(self, detectors, piece.images))

    def _load_detectors(self) -> Sequence[AnyDetector]:
        if self.programs:
            return [load_program(path, self.params.infer) for path, _ in self.programs]
        return load_members(self.params, [path for path, _ in self.members])


def load_members(params: StageParams, weights: Sequence[Path]) -> list[PerImageRCNN]:
    """Load the teacher, which describes regions too, and after it the second member, if there is one."""
    detectors = [load_detector(params.model, len(params.classes), path) for path in weights]
    detectors[0].roi_heads.describes_regions = True
    return detectors


def job_fingerprint(params: InferParams | None = None) -> str:
    """Return the digest of the software that decides what is in a piece's file; without ``params`` by torch."""
    by_torch = software_fingerprint(Path(__file__))
    if params is None or params.backend == "torch":
        return by_torch
    return files.sha256_json([by_torch, program_fingerprint(params)])


def detect_images(job: DetectionJob, detectors: Sequence[Any], images: Sequence[dict[str, str]]) -> pa.Table:
    """Detect objects on some images.

    Returns:
        schemas.DETECTIONS, sorted by image id.

    Raises:
        UserError: an image cannot be read any more.
        ObjectStoreError: an object is missing, changed, or out of reach.
    """
    read = ImageReader(job.root, images, prefetch_remote=True)
    results = detect_all(
        detectors,
        images,
        lambda image: read(image["uri"]),
        job.params.model,
        batch_size=job.batch_size,
        mixed_precision=job.params.train.mixed_precision,
        doubt_frac=job.params.infer.objectness_entropy_frac,
    )
    threshold, [_, digest] = job.params.infer.score_threshold, job.members[0]
    rows = [_row(image["image_id"], found, threshold, digest) for image, found in results]
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
        "objectness_entropy_raw": None if found.doubt is None else found.doubt.top_mean,
        "objectness_entropy_map": _flat_map(found),
        "model_digest": digest,
    }


def _flat_map(found: Detections) -> Any:
    if found.doubt is None or found.doubt.map_percent is None:
        return None
    return found.doubt.map_percent.ravel()


log = logging.getLogger(__name__)


def run_local(job: DetectionJob, pieces: Sequence[Piece]) -> None:
    """Detect and write all pieces; with several GPUs each process takes its share."""
    launch("infer", detect_share, job, pieces)


def detect_share(job: DetectionJob, pieces: Sequence[Piece]) -> None:
    """Detect and write this process's share of the pieces, one after the other."""
    own = pieces[rank() :: world_size()]
    if not own:
        return
    detect = job.load()
    for number, piece in enumerate(own):
        detect(piece)
        log.info("infer piece %d/%d: %d images", number + 1, len(own), len(piece.rows))
