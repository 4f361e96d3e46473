"""A lock that a crash cannot leave shut and that says who holds it.

Three things beside each other, because each alone fails somewhere:

- the OS's own lock (flock) is the guard: Linux opens it when the process ends, however it ends;
- a record ``<name>.holder`` names the process, and a process with that identity that still runs is respected even
  where somebody has removed the lock file;
- a heartbeat moves the record's time. flock may not reach across the machines that share a folder, so a record of
  another machine counts as alive while its heartbeat moves *as we watch*. Whose clock says what is never asked.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.safety.identity import ProcessIdentity
from tasks import files
from tasks.errors import UserError

HEARTBEAT_S = 5.0
WATCHED_S = 3 * HEARTBEAT_S
"""How long a record of another machine is watched before it is taken for dead."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a lock."""

    identity: ProcessIdentity
    since: str
    """ISO 8601; to be read by people only."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a successor needs to clean up after it."""

    def __str__(self) -> str:
        """As in a message."""
        return f"process {self.identity.pid} on {self.identity.host} since {self.since}"


class HeldError(UserError):
    """Somebody else holds the lock."""

    def __init__(self, where: object, holder: Holder | None) -> None:
        """Take the locked place, and who is known to hold it."""
        who = f" ({holder})" if holder else ""
        super().__init__(where, f"another night is at work{who}, expected one at a time", "Let it finish.")
        self.holder = holder


@dataclass
class Held:
    """A lock in our hands."""

    record: Path
    holder: Holder

    def note(self, **notes: str) -> None:
        """Write down what a successor would need, should we die."""
        self.holder = Holder(self.holder.identity, self.holder.since, {**self.holder.notes, **notes})
        write_holder(self.record, self.holder)


@contextmanager
def held(path: Path, where: object, bury: Callable[[Holder], None]) -> Iterator[Held]:
    """Hold the lock at ``path`` within the block; never waits for a living holder.

    Args:
        path: the lock file; its record stands beside it.
        where: what is locked, as the error calls it.
        bury: is given a holder that died over the lock, before anything of it is overwritten.

    Raises:
        HeldError: somebody alive holds it.
    """
    record = path.with_name(f"{path.name}.holder")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise HeldError(where, read_holder(record)) from None
    try:
        predecessor = read_holder(record)
        if predecessor is not None and _is_alive(predecessor, record):
            raise HeldError(where, predecessor)
        if predecessor is not None:
            bury(predecessor)
        own = Held(record, Holder(ProcessIdentity.own(), datetime.now(UTC).isoformat(timespec="seconds")))
        with _recorded(own), _heartbeat(record):
            yield own
    finally:
        lock.release()


@contextmanager
def _recorded(own: Held) -> Iterator[None]:
    """The record stands as long as the lock is held, and longer only where we are killed."""
    write_holder(own.record, own.holder)
    try:
        yield
    finally:
        own.record.unlink(missing_ok=True)


def read_holder(record: Path) -> Holder | None:
    """The holder a record names; None where there is none, or half of one."""
    try:
        content: dict[str, Any] = files.read_json(record)
        identity = ProcessIdentity.parse(content["process"])
        return Holder(identity, str(content["since"]), dict(content["notes"])) if identity else None
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        return None


def write_holder(record: Path, holder: Holder) -> None:
    """Put a record down, whole or not at all."""
    files.write_json(record, {"process": str(holder.identity), "since": holder.since, "notes": holder.notes})


def _is_alive(holder: Holder, record: Path) -> bool:
    if holder.identity.same_boot:
        return holder.identity != ProcessIdentity.own() and not holder.identity.is_dead
    return _heart_beats(record)


def _heart_beats(record: Path) -> bool:
    """Watch a record of another boot; whatever time it bears, a change of it is a sign of life."""
    log.warning("%s is of another machine, or of this one before it was started anew; watching it", record)
    seen = _beat(record)
    deadline_s = time.monotonic() + WATCHED_S
    while time.monotonic() < deadline_s:
        time.sleep(min(HEARTBEAT_S / 5, WATCHED_S / 5))
        if _beat(record) != seen:
            return True
    return False


def _beat(record: Path) -> int | None:
    try:
        return record.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def _heartbeat(record: Path) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(record)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
