"""What a round was made with: Gleaner's code, the installed packages, the machine. It goes into the ledger."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import tasks
from flows.workspace import git
from flows.workspace.code_version import packaged_file
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_PACKAGES = ("flows", "tasks", "detectron_ext")


def collect_environment(workspace: Workspace) -> dict[str, Any]:
    """Everything besides labels and parameters that the result of a round may depend on."""
    return {
        "gleaner": gleaner_version(),
        "python": platform.python_version(),
        "packages_sha256": packages_sha256(),
        "requirements_lock_sha256": _requirements_lock_sha256(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": cpu_model(),
        "device": _training_device(workspace),
    }


def gleaner_version() -> dict[str, Any]:
    """Version of Gleaner; of a checkout also its commit, and whether its packages differ from that commit.

    What each stage's source was, installed or checked out, the ledger says in ``code``.
    """
    root = Path(tasks.__file__).parents[1]
    try:
        version: str | None = importlib.metadata.version("gleaner")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = None
    if not (root / ".git").exists():
        return {"version": version, "git_revision": None, "dirty": None}
    try:
        changed = git.run_git(root, "status", "--porcelain", "--", *_PACKAGES)
        return {"version": version, "git_revision": git.head_commit(root), "dirty": bool(changed)}
    except UserError:  # not a repository after all, or one of somebody else's
        return {"version": version, "git_revision": None, "dirty": None}


def packages_sha256() -> str:
    """Digest of the names and versions of all installed packages."""
    installed = {
        (distribution.metadata["Name"].lower().replace("_", "-"), distribution.version)
        for distribution in importlib.metadata.distributions()
    }
    return files.sha256_json(sorted(installed))


def cpu_model() -> str:
    """Model of the CPU: another one may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _requirements_lock_sha256() -> str | None:
    """The lock file this Gleaner was shipped with; None where an installation has none."""
    try:
        return files.sha256_file(packaged_file("requirements.lock"))
    except UserError:
        return None


def _training_device(workspace: Workspace) -> str | None:
    """What train ran on, as it noted with its time; None where its result came from a cache."""
    timing = workspace.timing("train")
    return files.read_json(timing).get("device") if timing.is_file() else None
