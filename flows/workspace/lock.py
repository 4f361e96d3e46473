"""A lock file that records its owner and is released when the owner's process ends.

Several mechanisms, because each alone fails somewhere:

- ``filelock`` (flock): the kernel releases it when the process ends, however it ends;
- a record ``<name>.owner`` identifies the process, so that it is respected while it runs even if the lock file was
  deleted. A process id alone is not enough, because Linux reuses it: boot id and start time, in ticks since boot,
  identify a process for ever, without a wall clock;
- the record is created by ``link``, which succeeds for one of two processes that start in the same moment, also on a
  network share. Whoever takes over the record of a dead owner looks again after a moment whether it is still the one;
- a heartbeat updates the record's modification time. flock may not work between machines that share a folder, so
  a record of another machine counts as alive if its time changes while this process watches it; the clocks of the
  machines are not compared.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
from filelock import FileLock, Timeout

from tasks.runtime.errors import UserError
from tasks.storage import files

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
_START_TIME_FIELD = 19
"""Index of starttime in /proc/<pid>/stat, counted after the program's name."""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot of one machine."""

    host: str
    boot: str
    pid: int
    start_ticks: int

    @classmethod
    def own(cls) -> Self:
        """Return the identity of this process."""
        own = cls.of(os.getpid())
        assert own is not None
        return own

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the process that has this id now; None where there is none, or only a zombie."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(socket.gethostname(), _boot_id(), pid, ticks)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse what ``str`` wrote; None where the text is something else."""
        host, *rest = text.split("|")
        try:
            boot, pid, ticks = rest
            return cls(host, boot, int(pid), int(ticks))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host}|{self.boot}|{self.pid}|{self.start_ticks}"

    @property
    def is_same_boot(self) -> bool:
        """Whether it ran on this machine since its last start, so that the process table lists it."""
        return self.boot == _boot_id()

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended; for a process of another machine this is unknown, and False."""
        if self.is_same_boot:
            return _start_ticks(self.pid) != self.start_ticks
        return self.host == socket.gethostname()  # this machine was restarted since


def _boot_id() -> str:
    return _BOOT_ID_PATH.read_text().strip() if _BOOT_ID_PATH.is_file() else f"{psutil.boot_time():.0f}"


def _start_ticks(pid: int) -> int | None:
    """Return the clock ticks from boot to the process's start; None for no such process, or a zombie."""
    if sys.platform != "linux":
        return _start_seconds(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[_START_TIME_FIELD])


def _start_seconds(pid: int) -> int | None:
    try:
        started_s: float = psutil.Process(pid).create_time()
    except psutil.Error:
        return None
    return int(started_s)


HEARTBEAT_S = 5.0
STALE_AFTER_S = 3 * HEARTBEAT_S
"""How long a record of another machine may stay unchanged before its owner counts as dead."""
_LOOK_AGAIN_AFTER_S = 0.5
"""How long the record of a dead owner may be in the hands of two that take it over at once."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockOwner:
    """The process that holds, or held, a lock."""

    identity: ProcessIdentity
    since: str
    """ISO 8601; for messages only."""
    notes: dict[str, str] = field(default_factory=dict)
    """What the next owner needs to clean up after a crash."""

    def __str__(self) -> str:
        """Return the text for messages."""
        return f"process {self.identity.pid} on {self.identity.host} since {self.since}"


class LockHeldError(UserError):
    """Another process holds the lock."""

    def __init__(self, where: object, owner: LockOwner | None) -> None:
        """Take what is locked, and the owner if it is known."""
        who = f" ({owner})" if owner else ""
        super().__init__(where, f"another run is active{who}, expected one at a time", "Let it finish.")
        self.owner = owner


@dataclass
class Lock:
    """A lock that this process holds."""

    record: Path
    owner: LockOwner

    def add_notes(self, **notes: str) -> None:
        """Add to the record what the next owner needs to clean up if this process crashes."""
        self.owner = LockOwner(self.owner.identity, self.owner.since, {**self.owner.notes, **notes})
        write_owner(self.record, self.owner)


@contextmanager
def acquire(path: Path, where: object, on_stale_owner: Callable[[LockOwner], None]) -> Iterator[Lock]:
    """Hold the lock at ``path`` within the block; does not wait.

    Args:
        path: the lock file; the record is written beside it.
        where: what is locked, for the error.
        on_stale_owner: called with an owner that crashed, before its record is overwritten.

    Raises:
        LockHeldError: a running process holds it.
    """
    record = path.with_name(f"{path.name}.owner")
    path.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(path, timeout=0)
    try:
        file_lock.acquire()
    except Timeout:
        raise LockHeldError(where, read_owner(record)) from None
    try:
        previous_owner = read_owner(record)
        if previous_owner is not None and _is_alive(previous_owner, record):
            raise LockHeldError(where, previous_owner)
        if previous_owner is not None:
            on_stale_owner(previous_owner)
        lock = Lock(record, LockOwner(ProcessIdentity.own(), datetime.now(UTC).isoformat(timespec="seconds")))
        with _owner_record(lock, where, previous_owner), _heartbeat(record):
            yield lock
    finally:
        file_lock.release()


@contextmanager
def _owner_record(lock: Lock, where: object, previous_owner: LockOwner | None) -> Iterator[None]:
    """Keep the record while the lock is held; only a kill leaves it behind.

    Raises:
        LockHeldError: a process, perhaps of another machine, has made its record first.
    """
    is_taken_over = _put_aside(lock.record, where, previous_owner)
    if not _create_record(lock.record, lock.owner):
        raise LockHeldError(where, read_owner(lock.record))
    if is_taken_over:
        time.sleep(_LOOK_AGAIN_AFTER_S)
        if not _is_own(lock.record):
            raise LockHeldError(where, read_owner(lock.record))
    try:
        yield
    finally:
        if _is_own(lock.record):
            lock.record.unlink(missing_ok=True)


def _put_aside(record: Path, where: object, previous_owner: LockOwner | None) -> bool:
    """Remove the record of a dead owner; return whether there was one.

    Raises:
        LockHeldError: it is another's record by now, which is put back.
    """
    aside = record.with_name(f".{record.name}.{uuid.uuid4().hex}.tmp")
    try:
        record.rename(aside)  # succeeds for one process only
    except FileNotFoundError:
        if previous_owner is not None:
            raise LockHeldError(where, read_owner(record)) from None
        return False
    try:
        found = read_owner(aside)
        if found != previous_owner:
            with suppress(FileExistsError):
                os.link(aside, record)
            raise LockHeldError(where, found)
    finally:
        aside.unlink()
    return True


def _create_record(record: Path, owner: LockOwner) -> bool:
    """Create the record; False where there is one."""
    temporary = record.with_name(f".{record.name}.{uuid.uuid4().hex}.tmp")
    write_owner(temporary, owner)
    try:
        os.link(temporary, record)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with record.open("x", encoding="utf-8") as file:
                json.dump(_document(owner), file)
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    return True


def _is_own(record: Path) -> bool:
    owner = read_owner(record)
    return owner is not None and owner.identity == ProcessIdentity.own()


def read_owner(record: Path) -> LockOwner | None:
    """Return the owner in a record; None where it is missing or incomplete."""
    try:
        content: dict[str, Any] = files.read_json(record)
        identity = ProcessIdentity.parse(content["process"])
        return LockOwner(identity, str(content["since"]), dict(content["notes"])) if identity else None
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        return None


def write_owner(record: Path, owner: LockOwner) -> None:
    """Write a record atomically."""
    files.write_json(record, _document(owner))


def _document(owner: LockOwner) -> dict[str, Any]:
    return {"process": str(owner.identity), "since": owner.since, "notes": owner.notes}


def _is_alive(owner: LockOwner, record: Path) -> bool:
    if owner.identity.is_same_boot:
        return owner.identity != ProcessIdentity.own() and not owner.identity.is_dead
    return _is_fresh(record)


def _is_fresh(record: Path) -> bool:
    """Watch a record of another boot; a change of its modification time means that its owner runs."""
    log.warning("%s belongs to another machine, or to this one before a restart; checking its heartbeat", record)
    last_mtime_ns = _mtime_ns(record)
    deadline_s = time.monotonic() + STALE_AFTER_S
    while time.monotonic() < deadline_s:
        time.sleep(min(HEARTBEAT_S / 5, STALE_AFTER_S / 5))
        if _mtime_ns(record) != last_mtime_ns:
            return True
    return False


def _mtime_ns(record: Path) -> int | None:
    try:
        return record.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def _heartbeat(record: Path) -> Iterator[None]:
    stop_event = threading.Event()

    def touch() -> None:
        while not stop_event.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(record)

    thread = threading.Thread(target=touch, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop_event.set()
        thread.join()
