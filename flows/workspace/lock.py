"""Which process this is, in a way that neither a reused process id nor a changed clock can confuse.

A process id alone means nothing: Linux gives it away again. With the ticks between the machine's start and the
process's, and the machine's boot id, it names one process for ever. No wall clock is involved.

A lock that a crash cannot leave shut and that says who holds it.

Three things beside each other, because each alone fails somewhere:

- the OS's own lock (flock) is the guard: Linux opens it when the process ends, however it ends;
- a record ``<name>.owner`` names the process, and a process with that identity that still runs is respected even
  where somebody has removed the lock file;
- a heartbeat moves the record's time. flock may not reach across the machines that share a folder, so a record of
  another machine counts as alive while its heartbeat moves *as we watch*. Whose clock says what is never asked.
"""

import logging
import os
import socket
import sys
import threading
import time
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
"""Place of starttime in /proc/<pid>/stat, counted after the program's name."""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot of one machine."""

    host: str
    boot: str
    pid: int
    start_ticks: int

    @classmethod
    def own(cls) -> Self:
        """This process."""
        own = cls.of(os.getpid())
        assert own is not None
        return own

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this id now; None where there is none, or only its corpse."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(socket.gethostname(), _boot_id(), pid, ticks)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read back what ``str`` wrote; None where it is something else."""
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
        """Whether its life can be looked up here."""
        return self.boot == _boot_id()

    @property
    def is_dead(self) -> bool:
        """Whether it certainly runs no more; of another machine's processes nobody here can be certain."""
        if self.is_same_boot:
            return _start_ticks(self.pid) != self.start_ticks
        return self.host == socket.gethostname()  # this machine has been started anew since


def _boot_id() -> str:
    return _BOOT_ID_PATH.read_text().strip() if _BOOT_ID_PATH.is_file() else f"{psutil.boot_time():.0f}"


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None where there is no such process, or only its corpse."""
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
"""How long a record of another machine is watched before it is taken for dead."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockOwner:
    """Who holds, or held, a lock."""

    identity: ProcessIdentity
    since: str
    """ISO 8601; to be read by people only."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a successor needs to clean up after it."""

    def __str__(self) -> str:
        """As in a message."""
        return f"process {self.identity.pid} on {self.identity.host} since {self.since}"


class LockHeldError(UserError):
    """Somebody else holds the lock."""

    def __init__(self, where: object, owner: LockOwner | None) -> None:
        """Take the locked place, and who is known to hold it."""
        who = f" ({owner})" if owner else ""
        super().__init__(where, f"another night is at work{who}, expected one at a time", "Let it finish.")
        self.owner = owner


@dataclass
class Lock:
    """A lock in our hands."""

    record: Path
    owner: LockOwner

    def add_notes(self, **notes: str) -> None:
        """Write down what a successor would need, should we die."""
        self.owner = LockOwner(self.owner.identity, self.owner.since, {**self.owner.notes, **notes})
        write_owner(self.record, self.owner)


@contextmanager
def acquire(path: Path, where: object, on_stale_owner: Callable[[LockOwner], None]) -> Iterator[Lock]:
    """Hold the lock at ``path`` within the block; never waits for a living holder.

    Args:
        path: the lock file; its record stands beside it.
        where: what is locked, as the error calls it.
        on_stale_owner: is given a holder that died over the lock, before anything of it is overwritten.

    Raises:
        LockHeldError: somebody alive holds it.
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
        with _owner_record(lock), _heartbeat(record):
            yield lock
    finally:
        file_lock.release()


@contextmanager
def _owner_record(lock: Lock) -> Iterator[None]:
    """The record stands as long as the lock is held, and longer only where we are killed."""
    write_owner(lock.record, lock.owner)
    try:
        yield
    finally:
        lock.record.unlink(missing_ok=True)


def read_owner(record: Path) -> LockOwner | None:
    """The holder a record names; None where there is none, or half of one."""
    try:
        content: dict[str, Any] = files.read_json(record)
        identity = ProcessIdentity.parse(content["process"])
        return LockOwner(identity, str(content["since"]), dict(content["notes"])) if identity else None
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        return None


def write_owner(record: Path, owner: LockOwner) -> None:
    """Put a record down, whole or not at all."""
    files.write_json(record, {"process": str(owner.identity), "since": owner.since, "notes": owner.notes})


def _is_alive(owner: LockOwner, record: Path) -> bool:
    if owner.identity.is_same_boot:
        return owner.identity != ProcessIdentity.own() and not owner.identity.is_dead
    return _is_fresh(record)


def _is_fresh(record: Path) -> bool:
    """Watch a record of another boot; whatever time it bears, a change of it is a sign of life."""
    log.warning("%s is of another machine, or of this one before it was started anew; watching it", record)
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
