"""Let campaigns that share a GPU take turns.

Two file locks per GPU: one is held while the GPU is used, the other by the campaign that is next. A campaign that has
just finished has to become next before it can use the GPU again, so it cannot overtake the one that waits. Linux
releases both locks when their process ends, however it ends.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from flows.runtime.process_env import has_prefect_server
from tasks.runtime.errors import UserError

GPU_STAGES = ("train", "evaluate", "infer")
"""Stages that compute on a GPU where there is one."""
CONCURRENCY_LIMIT_NAME = "gleaner-gpu"
"""Prefect's own limit, for campaigns on several machines; it applies where the user has created it."""
_SLOT_LEASE_S = 60.0
_POLL_INTERVAL_S = 1.0
_DEVICES_DIR = Path("/dev")


@contextmanager
def gpu_locks(stage: str, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold every GPU the stage may use within the block, if it uses any.

    Args:
        stage: name of the stage.
        owner: name of this campaign, shown to those that wait.
        on_wait: called with a message when this campaign has to wait, and again when the owner changes.
    """
    gpus = visible_gpus() if stage in GPU_STAGES else []
    with ExitStack() as exit_stack:
        for gpu in gpus:  # sorted: two campaigns that want the same two GPUs cannot deadlock
            exit_stack.enter_context(gpu_lock(gpu_lock_path(gpu), owner, on_wait))
        if gpus and has_prefect_server():
            from prefect.concurrency.sync import concurrency  # Prefect is imported after its server is known

            exit_stack.enter_context(
                concurrency(CONCURRENCY_LIMIT_NAME, occupy=1, strict=False, lease_duration=_SLOT_LEASE_S)
            )
        yield


def gpu_lock_path(gpu: str) -> Path:
    """Return the lock file of a GPU, the same for every campaign of this machine.

    ``GLEANER_LOCK_DIR`` names a folder that containers share; the default is in the system's temporary folder.
    """
    base = Path(os.environ.get("GLEANER_LOCK_DIR") or Path(tempfile.gettempdir()) / "gleaner-locks")
    return base / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}.lock"


@contextmanager
def gpu_lock(path: Path, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Wait for the lock at ``path`` and hold it within the block.

    Args:
        path: the lock file; it contains the owner's name while the lock is held.
        owner: name of this campaign.
        on_wait: called as in ``gpu_locks``.

    Raises:
        UserError: something else is in the place of a lock.
    """
    _create_shared_dir(path.parent)
    in_use, is_next = (FileLock(file, mode=0o666) for file in (path, path.with_suffix(".next")))
    wait_messages = _WaitMessages(path, on_wait)
    _acquire(is_next, wait_messages)
    try:
        _acquire(in_use, wait_messages)
    finally:
        is_next.release()
    try:
        _write_owner(path, owner)  # filelock leaves the content of its file to the holder
        yield
    finally:
        _write_owner(path, "")
        in_use.release()


class _WaitMessages:
    """Report who uses the GPU, once per owner."""

    def __init__(self, path: Path, on_wait: Callable[[str], None]) -> None:
        self._path = path
        self._on_wait = on_wait
        self._reported: str | None = None

    def report(self) -> None:
        try:
            owner = self._path.read_text(encoding="utf-8")
        except OSError:
            owner = "another campaign"
        if owner and owner != self._reported:  # empty for the moment in which the GPU changes hands
            self._on_wait(f"waiting for the GPU, which is in use by {owner}")
            self._reported = owner


def _acquire(lock: FileLock, wait_messages: _WaitMessages) -> None:
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            wait_messages.report()
            time.sleep(_POLL_INTERVAL_S)
        except OSError as error:  # every user of the machine can put a link or a file of theirs in its place
            problem = f"the lock cannot be opened ({os.strerror(error.errno or 0)}), expected a file of its own"
            fix = "Remove it, or name a folder that only your group can write: GLEANER_LOCK_DIR"
            raise UserError(lock.lock_file, problem, fix) from None
        else:
            return


def _create_shared_dir(folder: Path) -> None:
    """Create the folder writable for every user: the next campaign may be another user's."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # not by path: others may write here
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            os.fchmod(descriptor, 0o777)
    finally:
        os.close(descriptor)


def _write_owner(path: Path, owner: str) -> None:
    """Write the owner's name, for those that wait; never through a link that another user has put in its place."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(owner)


def visible_gpus() -> list[str]:
    """List the GPUs that a stage may use, named as in ``CUDA_VISIBLE_DEVICES`` or as device files; [] on a CPU.

    Without importing torch, which takes seconds.
    """
    nodes = gpu_devices()
    if not nodes:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [path.name.removeprefix("nvidia") for path in nodes]
    names = [name.strip() for name in named.split(",")]
    return sorted({name for name in names if name and not name.startswith("-")})


def gpu_devices() -> list[Path]:
    """List the device files of NVIDIA's GPUs, hidden ones included."""
    return sorted(_DEVICES_DIR.glob("nvidia[0-9]*"))
