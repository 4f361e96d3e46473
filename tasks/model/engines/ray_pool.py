"""The engine of many machines: actors of a Ray cluster, each with the teacher loaded once.

An actor writes the file of a piece by itself and returns its digest; nothing else passes between nodes. The folder of
the campaign must therefore be at the same path on each (NFS, EFS, a shared volume); images may be in an object store.
Ray is imported where an engine begins, and nowhere else.
"""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.model.detector import default_device
from tasks.model.engines.detection_job import DetectionJob, Piece, job_fingerprint
from tasks.model.engines.ray_actors import RayActors, run_pool
from tasks.model.engines.ray_cluster import connected
from tasks.params.stages import InferParams
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_user_error
from tasks.storage import files

log = logging.getLogger(__name__)
_FILE_VISIBLE_S = 60.0
"""What a shared folder may take to show a new file here: NFS caches a folder's content for up to a minute."""


def run_on_ray(params: InferParams, job: DetectionJob, pieces: Sequence[Piece]) -> None:
    """Detect and write all pieces on the nodes of the cluster that ``params`` names.

    Raises:
        UserError: ray or the cluster is missing, a node has other code or sees other files, or a piece fails.
        PoolStalledError: the pool got nothing done for as long as is allowed.
    """
    with connected(params.engine_address) as ray:
        backend = RayBackend(ray, job, params.engine_cpus_per_worker)
        log.info("infer on Ray: %s, %d pieces", backend.describe(), len(pieces))
        num_done = 0

        def finished(piece: Piece, sha256: str) -> None:
            nonlocal num_done
            num_done += 1
            check_piece_file(piece.path, sha256)
            log.info("infer piece %d/%d: %d images", num_done, len(pieces), len(piece.rows))

        run_pool(params, backend, pieces, finished)


def check_piece_file(path: Path, sha256: str, timeout_s: float = _FILE_VISIBLE_S) -> None:
    """Check that the file an actor wrote is the one that is seen here.

    Raises:
        UserError: it is missing or another one.
    """
    deadline_s = time.monotonic() + timeout_s
    while not path.is_file() or files.sha256_file(path) != sha256:
        if time.monotonic() > deadline_s:
            raise UserError(
                path,
                "a file that a worker has written is missing or another one, expected the same folder on all nodes",
                "Put the campaign on a folder that all nodes share, at the same path.",
            )
        time.sleep(1)


class DetectionActor:
    """The process of a worker; Ray makes it an actor."""

    def __init__(self, job: DetectionJob, num_threads: int) -> None:
        self._job = job
        self._num_threads = num_threads
        self._detect: Callable[[Piece], None] | None = None

    def load(self, fingerprint: str) -> str:
        """Load the teacher; return where this worker runs.

        Args:
            fingerprint: of the software on the driver.

        Raises:
            UserError: this node has other code or another teacher.
        """
        name = socket.gethostname()
        for path, sha256 in (*self._job.members, *self._job.programs):
            if not path.is_file() or files.sha256_file(path) != sha256:
                raise UserError(
                    path,
                    f"the weights on node {name} are missing or others, expected the same folder on all nodes",
                    "Put the campaign on a folder that all nodes share, at the same path.",
                )
        if job_fingerprint(self._job.params.infer) != fingerprint:
            raise UserError(
                "infer.engine",
                f"the code or the libraries of node {name} are others, expected those of this machine",
                "Use the same image on all nodes.",
            )
        torch.set_num_threads(self._num_threads)  # the last digits of a sum depend on it
        self._detect = self._job.load()
        return f"{name}, {default_device()}"

    def work(self, piece: Piece) -> str:
        """Detect a piece and write its file; return the file's sha256."""
        assert self._detect is not None, "load comes first"
        try:
            self._detect(piece)
        except Exception as error:
            user_error = as_user_error("infer", error)
            if user_error is None or user_error is error:
                raise
            raise user_error from None
        return files.sha256_file(piece.path)


class RayBackend(RayActors):
    """Workers of inference as actors of a cluster; on its GPUs where it has some."""

    def __init__(self, ray: Any, job: DetectionJob | None, cpus_per_worker: float | str) -> None:
        """Remember the job; nothing is started.

        Args:
            ray: the module, connected.
            job: what the pieces have in common; None where only the room is asked for.
            cpus_per_worker: logical CPUs that an actor takes, or ``auto``.
        """
        num_threads = torch.get_num_threads()
        super().__init__(
            ray,
            DetectionActor,
            (ray.put(job), num_threads),
            fingerprint=job_fingerprint(None if job is None else job.params.infer),
            uses_gpus=True,
            cpus_per_worker=cpus_per_worker,
            num_threads=num_threads,
        )
