"""Who may write: locks that crashes, reused process ids, other machines and changed clocks cannot confuse."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.workspace import lock
from flows.workspace.lock import LockHeldError, LockOwner, ProcessIdentity, acquire, read_owner, write_owner
from tests.flows.small_campaign import subprocess_env

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from flows.workspace.lock import acquire\n"
    "with acquire(Path(sys.argv[1]), 'here', print):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)"
)


@contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=subprocess_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock nobody holds; records of other machines are watched for a second."""
    monkeypatch.setattr(lock, "STALE_AFTER_S", 1.0)
    return tmp_path / "lock"


def died_over(place: Path) -> list[LockOwner]:
    """Take the lock; who held it last and did not give it back."""
    dead: list[LockOwner] = []
    with acquire(place, "x", dead.append):
        return dead


def record_of(place: Path) -> Path:
    return place.with_name("lock.owner")


def leave(place: Path, **changes: Any) -> LockOwner:
    """A record as a killed holder leaves it."""
    holder = LockOwner(replace(ProcessIdentity.own(), **changes), "2026-01-01T00:00:00+00:00", {"flow_runs": "a b"})
    write_owner(record_of(place), holder)
    return holder


def test_a_lock_names_its_holder_and_a_second_one_is_refused(place: Path) -> None:
    with child(HOLD, str(place)) as first:
        assert next_line(first) == "held"
        with (
            pytest.raises(LockHeldError, match=f"another run is active \\(process {first.pid} on") as refused,
            acquire(place, "x", print),
        ):
            pass
        assert refused.value.exit_code == 2
        first.kill()
        first.wait()
        (dead,) = died_over(place)
        assert dead.identity.pid == first.pid


def test_a_lock_that_was_given_back_leaves_no_predecessor(place: Path) -> None:
    def fail() -> None:
        with acquire(place, "x", print) as first:
            first.add_notes(flow_runs="a")
            assert read_owner(record_of(place)) == first.owner
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert died_over(place) == []


def test_a_process_id_in_use_again_is_not_the_holder(place: Path) -> None:
    """Process 1 lives, but it did not start when the record says."""
    dead = leave(place, pid=1, start_ticks=12345)
    assert died_over(place) == [dead]


def test_a_living_holder_is_respected_even_when_its_lock_file_was_removed(place: Path) -> None:
    with child(HOLD, str(place)) as first:
        assert next_line(first) == "held"
        place.unlink()
        with pytest.raises(LockHeldError, match=f"process {first.pid}"), acquire(place, "x", print):
            pass
        assert read_owner(record_of(place)) is not None  # the refusal took nothing away


@pytest.mark.parametrize("other", [{"boot": "another"}, {"boot": "another", "host": "elsewhere"}])
def test_a_silent_record_of_another_machine_is_taken_over(place: Path, other: dict[str, str]) -> None:
    dead = leave(place, **other)
    assert died_over(place) == [dead]


def test_a_beating_record_of_another_machine_is_respected_whatever_its_clock_says(place: Path) -> None:
    """Its clock is a year behind and runs backwards."""
    leave(place, boot="another", host="elsewhere")
    over = threading.Event()

    def beat() -> None:
        at_s = time.time() - 365 * 86400
        while not over.wait(0.05):
            at_s -= 60
            os.utime(record_of(place), (at_s, at_s))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(LockHeldError, match="on elsewhere"), acquire(place, "x", print):
            pass
    finally:
        over.set()
        heart.join()


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_was_set_decides_nothing(place: Path, days: int) -> None:
    """The record bears a time far from now: its holder is dead or alive all the same."""
    at_s = time.time() + days * 86400
    with child(HOLD, str(place)) as first:
        assert next_line(first) == "held"
        os.utime(record_of(place), (at_s, at_s))
        with pytest.raises(LockHeldError), acquire(place, "x", print):
            pass
    os.utime(record_of(place), (at_s, at_s))
    assert len(died_over(place)) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x|y", "since": "", "notes": {}}', '{"process": 3}'])
def test_half_a_record_stops_nobody(place: Path, content: str) -> None:
    record_of(place).write_text(content)
    assert died_over(place) == []


def test_the_heart_beats_while_the_lock_is_held(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    with acquire(place, "x", print):
        os.utime(record_of(place), (1, 1))
        deadline_s = time.monotonic() + 10
        while record_of(place).stat().st_mtime == 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


def test_a_process_is_told_from_its_corpse_and_from_its_successor() -> None:
    own = ProcessIdentity.own()
    assert ProcessIdentity.parse(str(own)) == own
    assert not own.is_dead
    assert replace(own, start_ticks=own.start_ticks + 1).is_dead
    assert replace(own, boot="before the restart").is_dead
    assert not replace(own, boot="another", host="elsewhere").is_dead  # who knows
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        ticks = 0
        while not replace(own, pid=zombie.pid, start_ticks=ticks).is_dead:
            time.sleep(0.01)


CONTEND = (
    "import sys, time\n"
    "from contextlib import contextmanager\n"
    "from pathlib import Path\n"
    "from flows.workspace import lock\n"
    "class NoFlock:\n"
    "    def __init__(self, *_, **__): pass\n"
    "    def acquire(self): pass\n"
    "    def release(self): pass\n"
    "lock.FileLock = NoFlock\n"
    "lock.STALE_AFTER_S, lock.HEARTBEAT_S = 3.0, 0.05\n"
    "lock._boot_id = lambda: sys.argv[2]\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "try:\n"
    "    with lock.acquire(Path(sys.argv[1]), 'here', lambda owner: None):\n"
    "        print('held', flush=True)\n"
    "        sys.stdin.readline()\n"
    "        print('own' if lock._is_own(Path(sys.argv[1]).with_name('lock.owner')) else 'lost', flush=True)\n"
    "except lock.LockHeldError as error:\n"
    "    print('refused', flush=True)\n"
)


@pytest.mark.parametrize("stale", [False, True])
def test_two_machines_that_start_in_the_same_moment_do_not_both_get_a_lock_without_flock(
    place: Path, stale: bool
) -> None:
    """Twice: machines told apart by their boot, on a file system where flock does nothing."""
    for turn in range(2):
        if stale:
            leave(place, boot="dead", host="elsewhere")
        with child(CONTEND, str(place), f"one{turn}") as first, child(CONTEND, str(place), f"two{turn}") as second:
            both = (first, second)
            assert [next_line(one) for one in both] == ["ready", "ready"]
            for one in both:
                assert one.stdin is not None
                one.stdin.write("\n")
                one.stdin.flush()
            outcomes = [next_line(one) for one in both]
            assert sorted(outcomes) in (["held", "refused"], ["refused", "refused"])
            for one, outcome in zip(both, outcomes, strict=True):
                if outcome == "held":
                    assert one.stdin is not None
                    one.stdin.write("\n")
                    one.stdin.flush()
                    assert next_line(one) == "own"  # who was refused has not removed the record
                one.wait(20)
        assert read_owner(record_of(place)) is None


def test_who_takes_over_looks_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks, another machine may have taken the same dead record over a moment later."""
    record = record_of(place)
    dead = replace(ProcessIdentity.own(), host="elsewhere", boot="another")
    other = LockOwner(replace(dead, host="third"), "2026-01-01T00:00:00+00:00")
    write_owner(record, LockOwner(dead, "2026-01-01T00:00:00+00:00"))
    monkeypatch.setattr(lock, "_is_alive", lambda *_: False)
    monkeypatch.setattr(lock.time, "sleep", lambda _: write_owner(record, other))
    with pytest.raises(LockHeldError), acquire(place, "here", lambda _: None):
        pass
    assert read_owner(record) == other


def test_a_record_that_changed_hands_is_put_back(place: Path) -> None:
    dead = leave(place, boot="dead", host="elsewhere")
    winner = leave(place, boot="winner", host="elsewhere")
    with pytest.raises(LockHeldError, match="on elsewhere"):
        lock._put_aside(record_of(place), "x", dead)
    assert read_owner(record_of(place)) == winner
    assert [path.name for path in place.parent.iterdir()] == ["lock.owner"]


def test_a_file_system_without_links_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lock.os, "link", refuse)
    with acquire(place, "x", print):
        assert not lock._create_record(record_of(place), LockOwner(ProcessIdentity.own(), "now"))
