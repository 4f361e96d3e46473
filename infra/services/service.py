"""What the stack knows of a service."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.runtime.errors import UserError


class LocalServiceError(UserError):
    """A service can not be started or stopped."""

    exit_code = 1


class NotReady(Exception):
    """The service does not do its work yet; the text says what it answered."""


@dataclass(frozen=True)
class Service:
    """One server process: how it starts, when it is ready, how it stops."""

    name: str
    folder: Path
    """Its data; also its working folder."""
    ports: tuple[int, ...]
    """All it listens on, on 127.0.0.1 only; the first is the one that people use."""
    url: str
    """What people connect to; holds no secret."""
    command: tuple[str, ...]
    check_ready: Callable[[], None]
    """Lets it do some real work, and creates what is missing inside; raises NotReady while it can not."""
    env: Mapping[str, str] = field(default_factory=dict)
    """All it sees beside PATH, HOME and the language: settings of the caller's shell must not leak in."""
    prepare: Callable[[], None] = lambda: None
    """Before each start; changes nothing where it has been done."""
    user: str | None = None
    """Whom it runs as, where that is not us."""
    start_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 15.0
    """After that it gets SIGKILL."""
