"""Find the campaign that a command works on, and lock it against other runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flows.workspace.crash_recovery import record_crashed_run, recover
from flows.workspace.lock import Lock, acquire
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError


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
    """
    with acquire(workspace.lock, workspace.root, partial(record_crashed_run, workspace)) as lock:
        recover(workspace.root)
        yield lock


def require_unlocked(workspace: Workspace) -> None:
    """Check the lock before a server is started for a run that could not start.

    Raises:
        LockHeldError: another run is active.
    """
    with run_lock(workspace):
        pass
