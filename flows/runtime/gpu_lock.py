"""Campaigns that share a GPU take turns: first come, first served.

Whoever wants a GPU takes the next ticket of its queue, a file that its process holds locked. It is your turn when
no ticket before yours is held; a ticket that nobody holds is of a dead process and is thrown away. So a crash
gives the GPU back at once, and nobody can overtake.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock
from prefect.concurrency.sync import concurrency

from flows.runtime.process_env import has_prefect_server

GPU_STAGES = ("train", "evaluate", "infer")
"""Stages that compute on a GPU where there is one."""
CONCURRENCY_LIMIT_NAME = "gleaner-gpu"
"""Prefect's own limit, for campaigns on several machines; used where somebody has made it."""
_SLOT_LEASE_S = 60.0
_POLL_INTERVAL_S = 1.0
_DEVICES_DIR = Path("/dev")


def visible_gpus() -> list[str]:
    """GPUs a stage may use, as ``CUDA_VISIBLE_DEVICES`` or the driver's device files name them; [] on a CPU."""
    nodes = sorted(path.name for path in _DEVICES_DIR.glob("nvidia[0-9]*"))
    if not nodes:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [name.removeprefix("nvidia") for name in nodes]
    names = [name.strip() for name in named.split(",")]
    return sorted({name for name in names if name and not name.startswith("-")})


@contextmanager
def gpu_locks(stage: str, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold every GPU the stage may use within the block, if it uses any.

    Args:
        stage: name of the stage.
        owner: what others who wait are told about us.
        on_wait: is told that we wait, and for whom.
    """
    gpus = visible_gpus() if stage in GPU_STAGES else []
    with ExitStack() as exit_stack:
        for gpu in gpus:  # sorted: two campaigns that want the same two never wait for each other
            exit_stack.enter_context(gpu_lock(gpu_queue_dir(gpu), owner, on_wait))
        if gpus and has_prefect_server():
            exit_stack.enter_context(
                concurrency(CONCURRENCY_LIMIT_NAME, occupy=1, strict=False, lease_duration=_SLOT_LEASE_S)
            )
        yield


def gpu_queue_dir(gpu: str) -> Path:
    """Folder of a GPU's tickets, the same for every campaign of this machine.

    ``GLEANER_LOCK_DIR`` names a place that containers share; otherwise it is the system's for temporary files.
    """
    base = Path(os.environ.get("GLEANER_LOCK_DIR") or Path(tempfile.gettempdir()) / "gleaner-locks")
    return base / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}"


@contextmanager
def gpu_lock(queue: Path, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Wait for our turn, and have it within the block."""
    ticket = _acquire_ticket(queue, owner)
    try:
        reported: str | None = None
        while current_owner := _current_owner(queue, ticket.number):
            if current_owner != reported:
                on_wait(f"waiting for the GPU, which is in use by {current_owner}")
                reported = current_owner
            time.sleep(_POLL_INTERVAL_S)
        yield
    finally:
        ticket.release()


class _Ticket:
    """A numbered file, locked as long as its process lives."""

    def __init__(self, path: Path, number: int, owner: str) -> None:
        self.number = number
        self._path = path
        self._file = path.open("x", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.write(owner)
        self._file.flush()
        path.chmod(0o666)  # the next in the queue may be another user

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


def _queue_mutex(queue: Path) -> FileLock:
    """Held for the moment in which tickets are given out and thrown away."""
    return FileLock(queue / "guard", mode=0o666)


def _acquire_ticket(queue: Path, owner: str) -> _Ticket:
    _create_shared_dirs(queue)
    with _queue_mutex(queue):
        number = max(_ticket_numbers(queue), default=0) + 1
        return _Ticket(queue / f"{number:09d}", number, owner)


def _current_owner(queue: Path, number: int) -> str:
    """Who is at the head of the queue before ``number``; empty where it is our turn."""
    with _queue_mutex(queue):
        before = sorted(earlier for earlier in _ticket_numbers(queue) if earlier < number)
        return next(filter(None, (_owner_if_alive(queue / f"{earlier:09d}") for earlier in before)), "")


def _owner_if_alive(ticket: Path) -> str:
    """Who holds a ticket; empty, and the ticket thrown away, where nobody does."""
    try:
        with ticket.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ticket.unlink(missing_ok=True)
    except BlockingIOError:
        return _owner_name(ticket)
    except FileNotFoundError:
        pass
    return ""


def _owner_name(ticket: Path) -> str:
    try:
        return ticket.read_text(encoding="utf-8") or "another campaign"
    except OSError:
        return "another campaign"


def _ticket_numbers(queue: Path) -> Sequence[int]:
    return [int(path.name) for path in queue.iterdir() if path.name.isdigit()]


def _create_shared_dirs(folder: Path) -> None:
    for path in (folder.parent, folder):
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o777)
