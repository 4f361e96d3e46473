"""What a kill in the wrong millisecond leaves behind in git's and DVC's own files, put right before a night begins."""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows import vcs

_STALE_S = 600.0
_LOCKFILE = "dvc.lock"


def mend(root: Path) -> None:
    """Clear away dead locks and half-written files; only with the night's lock in hand."""
    _drop_stale_git_lock(root)
    _drop_stale_dvc_lock(root)
    _restore_broken_lockfile(root)


def _drop_stale_git_lock(root: Path) -> None:
    """A git that lost its power leaves index.lock for ever; one that is alive keeps it for seconds."""
    lock = root / ".git" / "index.lock"
    if lock.is_file() and time.time() - lock.stat().st_mtime > _STALE_S:
        lock.unlink(missing_ok=True)


def _drop_stale_dvc_lock(root: Path) -> None:
    """DVC trusts the process ids in its lock file: half a file, or an id in use again, would stop every night."""
    lock = root / ".dvc" / "tmp" / "rwlock"
    try:
        held = json.loads(lock.read_text(encoding="utf-8"))
        writers = list(held.get("write", {}).values())
        readers = [reader for readers in held.get("read", {}).values() for reader in readers]
        if any(_is_dvc(holder["pid"]) for holder in writers + readers):
            return
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, TypeError, KeyError):
        pass  # no lock of DVC's: cut off while it was written
    lock.unlink(missing_ok=True)


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in argument for argument in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _restore_broken_lockfile(root: Path) -> None:
    """DVC writes dvc.lock in place. The last committed one loses nothing: DVC finds finished runs in its cache."""
    path = root / _LOCKFILE
    if not path.is_file() or _is_whole(path):
        return
    path.unlink()
    if vcs.git(root, "ls-tree", "--name-only", "HEAD", _LOCKFILE):
        vcs.git(root, "checkout", "HEAD", "--", _LOCKFILE)


def _is_whole(path: Path) -> bool:
    try:
        stages: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        items = [item for entry in stages.values() for kind in ("deps", "outs") for item in entry.get(kind, ())]
        return all({"cmd", "outs"} <= set(entry) for entry in stages.values()) and all(
            {"path", "md5"} <= set(item) for item in items
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False
