"""Which process this is, in a way that neither a reused process id nor a changed clock can confuse.

A process id alone means nothing: Linux gives it away again. With the ticks between the machine's start and the
process's, and the machine's boot id, it names one process for ever. No wall clock is involved.
"""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

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
