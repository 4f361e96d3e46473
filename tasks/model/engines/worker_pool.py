"""Deal pieces out to a pool of workers that may come, die, hang and go while the work is done.

The pool knows no library: a ``Backend`` starts workers, gives them pieces and tells what has ended.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tasks.runtime.errors import EXIT_UNREACHABLE, UserError

log = logging.getLogger(__name__)
MAX_TRIES = 3
"""Workers that a piece may lose, or that may fail to start one after the other, before the run is ended."""
_POLL_S = 1.0


class WorkerLostError(Exception):
    """A worker is gone: its process or its node died, or the connection to it broke."""


class PoolStalledError(UserError):
    """The pool got nothing done for as long as is allowed. The same call may work in a while."""

    exit_code = EXIT_UNREACHABLE
    transient = True


class WorkPiece(Protocol):
    """Some images, in one piece of work."""

    @property
    def name(self) -> str:
        """Name of the piece, different from those of the others."""

    @property
    def uris(self) -> Sequence[str]:
        """The images."""


_Piece = TypeVar("_Piece", bound=WorkPiece)


class Backend(Protocol):
    """What a pool needs of a library for distributed work. Workers and calls are opaque."""

    def capacity(self) -> int:
        """Return how many workers have room on the nodes that are there now."""

    def start_worker(self) -> tuple[Any, Hashable]:
        """Start a worker; return it, and the call that ends when it is ready."""

    def submit(self, worker: Any, piece: Any) -> Hashable:
        """Begin a piece on a worker that is ready; return the call."""

    def wait(self, calls: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        """Return the calls that have ended, after ``timeout_s`` at the latest."""

    def result(self, call: Hashable) -> str:
        """Return what an ended call says: where the worker runs, or what came of the piece.

        Raises:
            WorkerLostError: the worker is gone.
            Exception: what the worker raised.
        """

    def kill(self, worker: Any) -> None:
        """End a worker, whatever it does."""

    def describe(self) -> str:
        """Return nodes and resources in words, for an error message."""


@dataclass
class _Call:
    """A call that has not ended: a start (no piece) or a piece."""

    worker: Any
    piece: Any
    begun_s: float


class WorkerPool(Generic[_Piece]):
    """Workers that do pieces until all are done.

    It grows with the cluster up to ``max_workers``. A lost worker's piece goes to another. A piece that is open for
    half of ``timeout_s`` is taken from its worker; nothing finished for ``timeout_s`` ends the run.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_workers: int | None,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without workers.

        Args:
            backend: starts and reaches the workers.
            max_workers: at most this many at once; None: as many as have room.
            timeout_s: seconds without a finished piece or a new worker after which the run is ended.
            clock: seconds.
        """
        self._backend = backend
        self._max_workers = max_workers
        self._timeout_s = timeout_s
        self._clock = clock
        self._queue: deque[_Piece] = deque()
        self._calls: dict[Hashable, _Call] = {}
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._losses: Counter[str] = Counter()
        self._failed_starts = 0
        self._progress_s = 0.0

    def run(self, pieces: Sequence[_Piece], finished: Callable[[_Piece, str], None]) -> None:
        """Return when every piece is done.

        Args:
            pieces: to be done.
            finished: called with each piece and the worker's answer, in this thread.

        Raises:
            UserError: a worker raised it; a piece lost ``MAX_TRIES`` workers; or so many starts failed.
            PoolStalledError: nothing was done for as long as is allowed.
        """
        self._queue.extend(pieces)
        self._progress_s = self._clock()
        try:
            while self._queue or any(call.piece for call in self._calls.values()):
                self._grow()
                self._deal()
                for call in self._backend.wait(list(self._calls), _POLL_S):
                    self._take(call, finished)
                self._take_back_slow_pieces()
                if self._clock() - self._progress_s > self._timeout_s:
                    raise self._stalled()
        finally:
            for worker in self._workers:
                self._backend.kill(worker)

    def _grow(self) -> None:
        num_open = len(self._queue) + sum(call.piece is not None for call in self._calls.values())
        room = self._backend.capacity()
        wanted = min(num_open, room if self._max_workers is None else min(room, self._max_workers))
        for _ in range(wanted - len(self._workers)):
            worker, call = self._backend.start_worker()
            self._workers.append(worker)
            self._calls[call] = _Call(worker, None, self._clock())

    def _deal(self) -> None:
        while self._queue and self._idle:
            worker, piece = self._idle.pop(), self._queue.popleft()
            self._calls[self._backend.submit(worker, piece)] = _Call(worker, piece, self._clock())

    def _take(self, key: Hashable, finished: Callable[[_Piece, str], None]) -> None:
        call = self._calls.pop(key)
        try:
            answer = self._backend.result(key)
        except WorkerLostError as error:
            self._lose(call, str(error))
            return
        self._progress_s = self._clock()
        self._idle.append(call.worker)
        if call.piece is None:
            self._failed_starts = 0
            log.info("worker ready on %s", answer)
        else:
            finished(call.piece, answer)

    def _lose(self, call: _Call, why: str) -> None:
        self._workers.remove(call.worker)
        self._backend.kill(call.worker)
        if call.piece is None:
            self._failed_starts += 1
            log.warning("a worker was lost while it started (%s)", why)
            if self._failed_starts >= MAX_TRIES:
                raise UserError(
                    "infer.engine",
                    f"the number of workers that could not start is {self._failed_starts}, the last one: {why}",
                    f"Run: gleaner doctor. The cluster: {self._backend.describe()}.",
                )
            return
        name = call.piece.name
        self._losses[name] += 1
        log.warning("a worker was lost with %s (%s); another gets it", name, why)
        if self._losses[name] >= MAX_TRIES:
            uris = call.piece.uris
            raise UserError(
                "infer.engine",
                f"the number of workers lost with the same {len(uris)} images ({uris[0]} to {uris[-1]}) is "
                f"{MAX_TRIES}, the last one: {why}",
                "Look for an image among them that ends the process that opens it, or give workers more memory.",
            )
        self._queue.appendleft(call.piece)

    def _take_back_slow_pieces(self) -> None:
        limit_s = self._timeout_s / 2
        for key, call in list(self._calls.items()):
            if call.piece is not None and self._clock() - call.begun_s > limit_s:
                del self._calls[key]
                self._lose(call, f"no answer for {limit_s / 60:.0f} minutes")

    def _stalled(self) -> PoolStalledError:
        num_starting = sum(call.piece is None for call in self._calls.values())
        num_working = len(self._calls) - num_starting
        num_open = len(self._queue) + num_working
        return PoolStalledError(
            "infer.engine",
            f"the time without a finished piece is {self._timeout_s / 60:g} minutes with {num_open} pieces open, "
            f"{num_working} workers at work and {num_starting} waiting for room ({self._backend.describe()}), "
            "expected some progress",
            "Give the cluster room, or raise infer.engine_timeout_minutes; finished pieces are kept.",
        )
