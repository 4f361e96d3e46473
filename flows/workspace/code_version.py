"""Digests of each stage's source in ``code_versions.json``: an upgrade re-runs only the stages whose code changed."""

from pathlib import Path
from typing import Any

import yaml

import tasks
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

CODE_PACKAGES = ("tasks", "detectron_ext")
_PACKAGE_ROOT = Path(tasks.__file__).parents[1]


def packaged_file(name: str) -> Path:
    """Find a file of the repository, such as ``dvc.yaml``, wherever this Gleaner is installed.

    Raises:
        UserError: the installation lacks the file.
    """
    for folder in (_PACKAGE_ROOT / "tasks" / "workspace", _PACKAGE_ROOT):
        if (folder / name).is_file():
            return folder / name
    raise UserError(_PACKAGE_ROOT, f"{name} is missing, expected it beside the packages", "Install Gleaner again.")


def packaged_stages() -> dict[str, Any]:
    """Return ``stages`` of the repository's dvc.yaml, in order."""
    stages: dict[str, Any] = yaml.safe_load(packaged_file("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return stages


def is_code(dependency: str) -> bool:
    """Return whether a dependency in dvc.yaml is source code of Gleaner."""
    return dependency.split("/")[0] in CODE_PACKAGES


def code_digests() -> dict[str, str]:
    """Return the SHA-256 over the installed source files of each stage."""
    digests: dict[str, str] = {}
    for stage, entry in packaged_stages().items():
        sources = sorted(path for path in entry.get("deps", ()) if is_code(path))
        digests[stage] = files.sha256_json([[path, _digest(_PACKAGE_ROOT / path)] for path in sources])
    return digests


def stale_stages(workspace: Workspace) -> list[str]:
    """Return the stages whose installed source differs from that recorded in ``code_versions.json``."""
    recorded = files.read_json(workspace.code_versions)
    return [stage for stage, digest in code_digests().items() if recorded.get(stage) != digest]


def refresh_code_digests(workspace: Workspace) -> None:
    """Update ``code_versions.json`` if a digest has changed."""
    digests = code_digests()
    if not workspace.code_versions.is_file() or files.read_json(workspace.code_versions) != digests:
        files.write_json(workspace.code_versions, digests)


def _digest(path: Path) -> str:
    if not path.exists():
        raise UserError(path, "the source is missing, expected it in the installation", "Install Gleaner again.")
    return files.sha256_tree(path, keep=lambda found: "__pycache__" not in found.parts)
