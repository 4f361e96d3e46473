"""The engine of many machines: actors of a Ray cluster, each with the teacher loaded once.

An actor writes the file of a piece by itself and returns its digest; nothing else passes between nodes. The folder of
the campaign must therefore be at the same path on each (NFS, EFS, a shared volume); images may be in an object store.
Ray is imported where an engine begins, and nowhere else.
"""

import logging
import socket
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.model.detector import default_device
from tasks.model.engines.detection_job import DetectionJob, Piece, job_fingerprint
from tasks.model.engines.ray_cluster import Node, connected, describe, nodes
from tasks.model.engines.worker_pool import WorkerLostError, WorkerPool
from tasks.params.stages import InferParams
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_user_error
from tasks.storage import files

log = logging.getLogger(__name__)
_FILE_VISIBLE_S = 60.0
"""What a shared folder may take to show a new file here: NFS caches a folder's content for up to a minute."""
_GPU_CPUS = 0.5
_SPARE_CPUS = 0.5


def run_on_ray(params: InferParams, job: DetectionJob, pieces: Sequence[Piece]) -> None:
    """Detect and write all pieces on the nodes of the cluster that ``params`` names.

    Raises:
        UserError: ray or the cluster is missing, a node has other code or sees other files, or a piece fails.
        PoolStalledError: the pool got nothing done for as long as is allowed.
    """
    with connected(params.engine_address) as ray:
        backend = RayBackend(ray, job, params.engine_cpus_per_worker)
        log.info("infer on Ray: %s, %d pieces", backend.describe(), len(pieces))
        pool = WorkerPool(
            backend,
            max_workers=None if params.engine_workers == "auto" else params.engine_workers,
            timeout_s=60 * params.engine_timeout_minutes,
        )
        num_done = 0

        def finished(piece: Piece, sha256: str) -> None:
            nonlocal num_done
            num_done += 1
            check_piece_file(piece.path, sha256)
            log.info("infer piece %d/%d: %d images", num_done, len(pieces), len(piece.rows))

        pool.run(pieces, finished)


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

    def detect(self, piece: Piece) -> str:
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


class RayBackend:
    """Workers of a pool as actors of a cluster; on its GPUs where it has some."""

    def __init__(self, ray: Any, job: DetectionJob | None, cpus_per_worker: float | str) -> None:
        """Remember the job; nothing is started.

        Args:
            ray: the module, connected.
            job: what the pieces have in common; None where only the room is asked for.
            cpus_per_worker: logical CPUs that an actor takes, or ``auto``.
        """
        self._ray = ray
        self._job = ray.put(job)
        self._num_threads = torch.get_num_threads()
        self._fingerprint = job_fingerprint(None if job is None else job.params.infer)
        self._cpus_per_worker = cpus_per_worker
        self._on_gpus = any(node.num_gpus for node in nodes(ray))

    def capacity(self) -> int:
        """Return ``room``, or 1 where there is none, so that an autoscaler is asked for a first node."""
        return max(self.room(), 1)

    def room(self) -> int:
        """Return how many workers have room on the nodes that are there now."""
        found = nodes(self._ray)
        num_cpus = self._num_cpus(found)
        return sum(int(min(node.num_cpus / num_cpus, node.num_gpus if self._on_gpus else 1e6)) for node in found)

    def start_worker(self) -> tuple[Any, Hashable]:
        """Start an actor; return it, and the call that ends when its teacher is loaded."""
        actor_class = self._ray.remote(DetectionActor)
        actor = actor_class.options(
            num_cpus=self._num_cpus(nodes(self._ray)),
            num_gpus=int(self._on_gpus),
            max_restarts=0,
            scheduling_strategy="SPREAD",
        ).remote(self._job, self._num_threads)
        return actor, actor.load.remote(self._fingerprint)

    def submit(self, worker: Any, piece: Piece) -> Hashable:
        """Begin a piece on an actor; return the call."""
        call: Hashable = worker.detect.remote(piece)
        return call

    def wait(self, calls: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        """Return the calls that have ended, after ``timeout_s`` at the latest."""
        if not calls:
            time.sleep(timeout_s)
            return []
        done, _ = self._ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        return list(done)

    def result(self, call: Hashable) -> str:
        """Return what an ended call says.

        Raises:
            WorkerLostError: the actor or its node died.
            UserError: the actor raised it.
        """
        exceptions = self._ray.exceptions
        try:
            return str(self._ray.get(call))
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except exceptions.RayError as error:  # the actor, its node, or the object with the answer
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise WorkerLostError(" ".join(lines[-2:]) or type(error).__name__) from None

    def kill(self, worker: Any) -> None:
        """End an actor, whatever it does."""
        self._ray.kill(worker)

    def describe(self) -> str:
        """Return nodes and resources in words."""
        return describe(nodes(self._ray))

    def _num_cpus(self, found: Sequence[Node]) -> float:
        """Logical CPUs of an actor: with all of a node's, nothing else of the cluster finds room there."""
        if self._cpus_per_worker != "auto":
            return float(self._cpus_per_worker)
        if self._on_gpus:
            return _GPU_CPUS
        largest = max((node.num_cpus for node in found), default=1.0)
        return max(min(self._num_threads, largest) - _SPARE_CPUS, _SPARE_CPUS)
