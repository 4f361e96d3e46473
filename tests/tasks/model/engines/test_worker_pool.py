"""The pool of workers on a backend and a clock written out here: who gets which piece, and what ends a run."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.model.engines.detection_job import Piece
from tasks.model.engines.worker_pool import Backend, PoolStalledError, WorkerLostError, WorkerPool
from tasks.runtime.errors import EXIT_UNREACHABLE, UserError

Fate = str | Exception | None
"""How a call ends: an answer, an error, or never."""


def piece(number: int) -> Piece:
    return Piece(pa.table({"image_id": [f"{number}"], "uri": [f"{number}.png"]}), Path(f"piece-{number}"))


@dataclass
class FakeBackend:
    """Each wait takes a second; a call ends in the wait after its submission."""

    fate: Callable[[int, Piece | None], Fate] = lambda worker, one: "here" if one is None else f"sha of {one.path}"
    rooms: Callable[[float], int] = lambda now_s: 2
    now_s: float = 0.0
    started: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    submitted: list[tuple[int, str]] = field(default_factory=list)

    def capacity(self) -> int:
        return self.rooms(self.now_s)

    def start_worker(self) -> tuple[int, Hashable]:
        self.started.append(len(self.started))
        return self.started[-1], (self.started[-1], None, -1)

    def submit(self, worker: int, one: Piece) -> Hashable:
        self.submitted.append((worker, one.path.name))
        return worker, int(one.path.name.removeprefix("piece-")), len(self.submitted)

    def ending(self, call: Hashable) -> Fate:
        worker, number, _ = call  # type: ignore[misc]
        return self.fate(worker, None if number is None else piece(number))

    def wait(self, calls: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        self.now_s += timeout_s
        return [call for call in calls if self.ending(call) is not None]

    def result(self, call: Hashable) -> str:
        ending = self.ending(call)
        if isinstance(ending, Exception):
            raise ending
        assert ending is not None
        return ending

    def kill(self, worker: int) -> None:
        self.killed.append(worker)

    def describe(self) -> str:
        return "2 nodes alive"

    def run(self, num_pieces: int, *, max_workers: int | None = None, timeout_s: float = 600.0) -> dict[str, str]:
        backend: Backend = self
        done: dict[str, str] = {}

        def finished(one: Piece, sha256: str) -> None:
            assert one.path.name not in done
            done[one.path.name] = sha256

        pool = WorkerPool(backend, max_workers=max_workers, timeout_s=timeout_s, clock=lambda: self.now_s)
        pool.run([piece(number) for number in range(num_pieces)], finished)
        return done


def test_every_piece_is_done_once_and_all_workers_are_ended() -> None:
    backend = FakeBackend()
    assert backend.run(5) == {f"piece-{number}": f"sha of piece-{number}" for number in range(5)}
    assert sorted(name for _, name in backend.submitted) == [f"piece-{number}" for number in range(5)]
    assert backend.started == [0, 1]
    assert set(backend.killed) == {0, 1}


@pytest.mark.parametrize(
    ("rooms", "max_workers", "num_pieces", "expected"), [(9, 3, 8, 3), (9, None, 4, 4), (2, 5, 8, 2)]
)
def test_no_more_workers_than_there_is_room_or_work_for(
    rooms: int, max_workers: int | None, num_pieces: int, expected: int
) -> None:
    backend = FakeBackend(rooms=lambda now_s: rooms)
    backend.run(num_pieces, max_workers=max_workers)
    assert len(backend.started) == expected


def test_the_pool_grows_with_the_cluster() -> None:
    backend = FakeBackend(rooms=lambda now_s: 1 if now_s < 3 else 3)
    assert len(backend.run(9)) == 9
    assert len(backend.started) == 3


def test_a_lost_workers_piece_goes_to_another() -> None:
    def fate(worker: int, one: Piece | None) -> Fate:
        if one is not None and worker == 0:
            return WorkerLostError("the node died")
        return "answer"

    backend = FakeBackend(fate)
    assert len(backend.run(4)) == 4
    [lost] = [name for worker, name in backend.submitted if worker == 0]
    assert [worker for worker, name in backend.submitted if name == lost] == [0, 1]


def test_a_piece_that_ends_every_worker_is_named() -> None:
    def fate(worker: int, one: Piece | None) -> Fate:
        return WorkerLostError("exit code 139") if one is not None and one.path.name == "piece-2" else "answer"

    backend = FakeBackend(fate)
    with pytest.raises(
        UserError, match=r"lost with the same 1 images \(2\.png to 2\.png\) is 3, the last one: exit code 139"
    ):
        backend.run(3)
    assert len({worker for worker, name in backend.submitted if name == "piece-2"}) == 3
    assert set(backend.killed) == set(backend.started)


def test_workers_that_cannot_start_end_the_run() -> None:
    backend = FakeBackend(lambda worker, one: WorkerLostError("no such module"))
    with pytest.raises(UserError, match="could not start is 3, the last one: no such module"):
        backend.run(2)


def test_a_pool_without_room_is_named_and_ended() -> None:
    backend = FakeBackend(lambda worker, one: None)
    with pytest.raises(
        PoolStalledError,
        match=r"without a finished piece is 10 minutes with 3 pieces open, 0 workers at work and 2 waiting for room "
        r"\(2 nodes alive\)",
    ) as caught:
        backend.run(3)
    assert 600 < backend.now_s < 605
    assert (caught.value.transient, caught.value.exit_code) == (True, EXIT_UNREACHABLE)
    assert set(backend.killed) == {0, 1}


def test_a_worker_that_hangs_loses_its_piece_after_half_the_time() -> None:
    backend = FakeBackend(lambda worker, one: None if worker == 0 and one is not None else "answer")
    assert len(backend.run(3)) == 3
    assert 300 < backend.now_s < 310
    [hung] = [name for worker, name in backend.submitted if worker == 0]
    assert [worker for worker, name in backend.submitted if name == hung] == [0, 1]
    assert 0 in backend.killed


def test_what_a_worker_raises_ends_the_run() -> None:
    error = UserError("7.png", "the image is unreadable", "Restore it.")
    backend = FakeBackend(lambda worker, one: error if one is not None and one.path.name == "piece-1" else "answer")
    with pytest.raises(UserError, match=r"7\.png: the image is unreadable\. Restore it\."):
        backend.run(4)
    assert set(backend.killed) == set(backend.started)
