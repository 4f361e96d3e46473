"""The engine of one machine: a process per GPU, or this process where there is one device."""

import logging
from collections.abc import Sequence

from detectron_ext.distributed import rank, world_size
from tasks.model.engines.detection_job import DetectionJob, Piece
from tasks.model.launch import launch

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
