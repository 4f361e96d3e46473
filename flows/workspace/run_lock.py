"""Find the campaign that a command works on, lock it against other runs, and clean up after a crashed run.

Crash recovery covers the files and processes of the crashed run; its open runs in MLflow and Prefect are closed by
``flows.run_hooks``.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.runtime.subprocess import GRACE_S
from flows.workspace import git
from flows.workspace.lock import Lock, LockOwner, acquire, write_owner
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

WORKSPACE_ENV = "GLEANER_WORKSPACE_OF_PROCESS"
"""Environment variable of every process that a run starts: the folder of its campaign."""
log = logging.getLogger(__name__)
_STALE_AFTER_S = 600.0
_DVC_LOCK_FILE = "dvc.lock"


def is_workspace(root: Path) -> bool:
    """Return whether the folder is a campaign."""
    workspace = Workspace(root)
    return workspace.code_versions.is_file() and workspace.dvc_yaml.is_file() and (root / ".dvc").is_dir()


def require_workspace(root: Path) -> Workspace:
    """Return the campaign in ``root``.

    Raises:
        UserError: the folder is not a campaign.
    """
    root = root.resolve()
    if is_workspace(root):
        return Workspace(root)
    if (root / "dvc.yaml").is_file() and (root / "flows").is_dir():
        fix = "Run gleaner demo for a campaign in ./demo, or dvc repro for one round right here."
        raise UserError(root, "the folder is Gleaner's own repository, expected a campaign", fix)
    fix = "Change to one, name it with --workspace, or make one with gleaner init."
    raise UserError(root, "the folder is no campaign, expected one made by gleaner init", fix)


@contextmanager
def run_lock(workspace: Workspace) -> Iterator[Lock]:
    """Lock the workspace for one run; what a crashed run left behind is cleaned up first.

    Raises:
        LockHeldError: another run is active.
        UserError: the folder cannot be written.
    """
    # Also where the file system is read-only; the folder of a study's lock is made by the lock.
    if workspace.root.exists() and not os.access(workspace.root, os.W_OK):
        problem = "the folder cannot be written, expected the campaign on a writable file system, by this user"
        raise UserError(workspace.root, problem, "Check its mount and its rights.")
    with acquire(workspace.lock, workspace.root, partial(record_crashed_run, workspace)) as lock:
        recover(workspace.root)
        yield lock


def recover(root: Path) -> None:
    """Remove orphaned processes, stale locks and damaged files. The caller must hold the run lock."""
    kill_orphans(root)
    _remove_stale_git_locks(root)
    _remove_stale_dvc_lock(root)
    _restore_corrupt_lock_file(root)


def record_crashed_run(workspace: Workspace, owner: LockOwner) -> None:
    """Record a crashed run until its runs in MLflow and Prefect are closed."""
    log.warning("The run of %s was killed. It is continued.", owner)
    identity = owner.identity
    write_owner(workspace.crashed_runs / f"{identity.pid}-{identity.start_ticks}.json", owner)


def kill_orphans(root: Path) -> None:
    """Terminate stages of a crashed run that still work; a training gets the time to save a checkpoint.

    The caller must hold the run lock. Processes that people start themselves lack the variable ``WORKSPACE_ENV``, and
    are not touched.
    """
    orphans = [process for process in psutil.process_iter() if _belongs_to(process, root)]
    if not orphans:
        return
    log.warning("%s: terminating processes of a crashed run: %d", root, len(orphans))
    for orphan in orphans:
        with suppress(psutil.Error):
            orphan.terminate()
    for orphan in psutil.wait_procs(orphans, timeout=GRACE_S)[1]:
        with suppress(psutil.Error):
            orphan.kill()


def _belongs_to(process: psutil.Process, root: Path) -> bool:
    try:
        return Path(process.cwd()) == root.resolve() and process.environ().get(WORKSPACE_ENV) == str(root.resolve())
    except (psutil.Error, OSError):
        return False


def _remove_stale_git_locks(root: Path) -> None:
    """Remove old lock files of git: it holds one for seconds, and leaves it behind after a power failure."""
    folder = root / ".git"
    for lock in [*folder.glob("*.lock"), *folder.glob("refs/**/*.lock"), *folder.glob("logs/**/*.lock")]:
        with suppress(FileNotFoundError):
            if lock.is_file() and time.time() - lock.stat().st_mtime > _STALE_AFTER_S:
                lock.unlink()


def _remove_stale_dvc_lock(root: Path) -> None:
    """Remove DVC's lock file where no DVC holds it: a damaged file, or a reused process id, would block every run."""
    lock = root / ".dvc" / "tmp" / "rwlock"
    try:
        entries = json.loads(lock.read_text(encoding="utf-8"))
        writers = list(entries.get("write", {}).values())
        readers = [reader for readers in entries.get("read", {}).values() for reader in readers]
        if any(_is_dvc(holder["pid"]) for holder in writers + readers):
            return
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, TypeError, KeyError):
        pass  # damaged: the process was killed while it wrote
    lock.unlink(missing_ok=True)


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in argument for argument in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _restore_corrupt_lock_file(root: Path) -> None:
    """Replace a damaged dvc.lock by the committed one; DVC finds runs finished since then in its run cache."""
    path = root / _DVC_LOCK_FILE
    if not path.is_file() or _is_valid_lock_file(path):
        return
    path.unlink()
    if git.run_git(root, "ls-tree", "--name-only", "HEAD", _DVC_LOCK_FILE):
        git.run_git(root, "checkout", "HEAD", "--", _DVC_LOCK_FILE)


def _is_valid_lock_file(path: Path) -> bool:
    try:
        stages: dict[str, Any] = files.parse_yaml(path.read_text(encoding="utf-8"))["stages"]
        items = [item for entry in stages.values() for kind in ("deps", "outs") for item in entry.get(kind, ())]
        return all({"cmd", "outs"} <= set(entry) for entry in stages.values()) and all(
            {"path", "md5"} <= set(item) for item in items
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False
