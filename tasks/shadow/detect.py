"""Run champion and challenger over images: ``python -m tasks.shadow.detect JOB.json``.

A killed run goes on where it was. A process of its own, because ``flows`` hold no tensors.
"""

import sys
from pathlib import Path

from tasks.model.engines.detection_job import DetectionJob, Piece, run_local
from tasks.params import load_stage_params
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.shadow.job import ShadowJob
from tasks.storage import files


def detect(job: ShadowJob) -> None:
    """Write the detections of the pieces that are missing, with the disagreement of the two models."""
    params = load_stage_params(job.params, "classes", "model", "infer", "train")
    missing = [Piece(rows, path) for rows, path in job.pieces() if not path.is_file()]
    if missing:
        members = tuple((path, files.sha256_file(path)) for path in (job.champion, job.challenger))
        batch_size = max(params.infer.batch_size // num_micro_batches(), 1)
        run_local(DetectionJob(params, job.root, members, batch_size), missing)


def main() -> None:
    """Detect what the job file of the command line says."""
    job = ShadowJob.model_validate_json(Path(sys.argv[1]).read_text("utf-8"))
    keep_freed_memory()
    stage_main("shadow", lambda _: detect(job))


if __name__ == "__main__":
    main()
