"""Actors of a Ray cluster as the workers of a pool, whatever they do; without torch, for stages without a network."""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from tasks.model.engines.ray_cluster import Node, describe, nodes
from tasks.model.engines.worker_pool import Backend, WorkerLostError, WorkerPool, WorkPiece
from tasks.params.stages import InferParams
from tasks.runtime.errors import UserError

_GPU_CPUS = 0.5
_SPARE_CPUS = 0.5
_Piece = TypeVar("_Piece", bound=WorkPiece)


def run_pool(
    params: InferParams, backend: Backend, pieces: Sequence[_Piece], finished: Callable[[_Piece, str], None]
) -> None:
    """Do all pieces with as many workers, and as much patience, as ``infer.engine_*`` allow; see ``WorkerPool.run``."""
    WorkerPool[_Piece](
        backend,
        max_workers=None if params.engine_workers == "auto" else params.engine_workers,
        timeout_s=60 * params.engine_timeout_minutes,
    ).run(pieces, finished)


class RayActors:
    """Workers of a pool as actors of a cluster: a class with ``load(fingerprint)`` and ``work(piece)``."""

    def __init__(
        self,
        ray: Any,
        actor_class: type,
        arguments: tuple[Any, ...],
        *,
        fingerprint: str,
        uses_gpus: bool,
        cpus_per_worker: float | str,
        num_threads: int,
    ) -> None:
        """Start nothing.

        Args:
            ray: the module, connected.
            actor_class: class of the actors.
            arguments: of its constructor.
            fingerprint: of what must be the same on every node.
            uses_gpus: whether each actor takes a GPU where the cluster has some.
            cpus_per_worker: logical CPUs that an actor takes, or ``auto``.
            num_threads: that an actor computes with.
        """
        self._ray = ray
        self._actor_class, self._arguments = actor_class, arguments
        self._fingerprint = fingerprint
        self._num_threads = num_threads
        self._cpus_per_worker = cpus_per_worker
        self._on_gpus = uses_gpus and any(node.num_gpus for node in nodes(ray))

    def capacity(self) -> int:
        """Return ``room``, or 1 where there is none, so that an autoscaler is asked for a first node."""
        return max(self.room(), 1)

    def room(self) -> int:
        """Return how many workers have room on the nodes that are there now."""
        found = nodes(self._ray)
        num_cpus = self._num_cpus(found)
        return sum(int(min(node.num_cpus / num_cpus, node.num_gpus if self._on_gpus else 1e6)) for node in found)

    def start_worker(self) -> tuple[Any, Hashable]:
        """Start an actor; return it, and the call that ends when it is ready."""
        actor_class = self._ray.remote(self._actor_class)
        actor = actor_class.options(
            num_cpus=self._num_cpus(nodes(self._ray)),
            num_gpus=int(self._on_gpus),
            max_restarts=0,
            scheduling_strategy="SPREAD",
        ).remote(*self._arguments)
        return actor, actor.load.remote(self._fingerprint)

    def submit(self, worker: Any, piece: Any) -> Hashable:
        """Begin a piece on an actor; return the call."""
        call: Hashable = worker.work.remote(piece)
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
