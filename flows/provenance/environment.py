"""Describe the software and the machine that make a round: Gleaner, installed packages, processor, device."""

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
    """Collect everything besides labels and parameters that may change the result of a round, for its ledger."""
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
    """Return Gleaner's version; of a checkout also its commit, and whether its packages have uncommitted changes.

    The digests of each stage's source code are elsewhere in the ledger, under ``code``.
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
    except UserError:  # not a repository of its own, or one that git refuses to read
        return {"version": version, "git_revision": None, "dirty": None}


def packages_sha256() -> str:
    """Return the SHA-256 of names and versions of all installed packages."""
    installed = {
        (distribution.metadata["Name"].lower().replace("_", "-"), distribution.version)
        for distribution in importlib.metadata.distributions()
    }
    return files.sha256_json(sorted(installed))


def cpu_model() -> str:
    """Return the model of the CPU; another one may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _requirements_lock_sha256() -> str | None:
    """SHA-256 of the lock file that was packaged with Gleaner; None where an installation has none."""
    try:
        return files.sha256_file(packaged_file("requirements.lock"))
    except UserError:
        return None


def _training_device(workspace: Workspace) -> str | None:
    """Device of the train stage, from its timing file; None where its result came from a cache."""
    timing = workspace.timing("train")
    return files.read_json(timing).get("device") if timing.is_file() else None
