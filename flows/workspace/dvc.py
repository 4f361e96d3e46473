"""Run DVC's command line in a workspace, read dvc.lock, and record the version of each stage's code.

``code_versions.json`` holds a digest of each stage's source, so that an upgrade reruns only
the stages whose code changed.
"""

import os
import re
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import tasks
from flows.runtime.fork_server import start_forked
from flows.runtime.subprocess import stream_output
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_DVC_CONFIG = {
    "core.analytics": "false",
    "core.check_update": "false",
    "core.autostage": "false",  # it would stage dvc.lock, and `git checkout -- .` then keeps the new one
    "cache.type": "reflink,hardlink,copy",
}
_DVC_MODULES = (
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.repo.reproduce",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.metrics",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.stage",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.lock",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.utils.strictyaml",
    "dvc.dirs",
    "dulwich.worktree",
    "ruamel.yaml",
)
"""What every command of DVC imports while it runs."""
_OUTAGE_PATTERN = re.compile(
    r"could not connect|connection|timed? ?out|disconnected|temporar|unavailable|name or service|slowdown"
    r"|internal ?error|internal server error|bad gateway|\b50[0234]\b|try again",
    re.IGNORECASE,
)
CODE_PACKAGES = ("tasks", "detectron_ext")
_PACKAGE_ROOT = Path(tasks.__file__).parents[1]


class DvcError(UserError):
    """A DVC command failed; ``transient`` where its remote is unavailable."""

    def __init__(self, root: Path, command: str, code: int, message: str) -> None:
        """Take the repository, DVC's command, its exit code and its error message."""
        super().__init__(root, f"dvc {command} ended with code {code} ({message}), expected 0")
        self.transient = bool(_OUTAGE_PATTERN.search(message))


def stream_dvc(
    root: Path,
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    limit_s: float = inf,
) -> int:
    """Run the installed DVC in ``root``, pass each line it prints to ``on_line`` and return its exit code.

    Args:
        root: working directory.
        arguments: command and options.
        on_line: takes a line.
        env: the whole environment; None: that of ``dvc_env``.
        limit_s: time limit.

    Raises:
        ProcessTimeout: it was still running after ``limit_s`` seconds.
    """
    process = start_forked(
        "dvc",
        arguments,
        modules=_DVC_MODULES,
        cwd=root,
        env=dvc_env() if env is None else env,
        parent_death_signal=signal.SIGTERM,
    )
    return stream_output(process, on_line=on_line, limit_s=limit_s)


def dvc_env() -> dict[str, str]:
    """Return an environment in which ``python -m tasks <stage>`` runs this Python and this Gleaner."""
    package_parent = str(Path(tasks.__file__).parents[1])
    python_path = os.environ.get("PYTHONPATH")
    if package_parent != sysconfig.get_path("purelib"):  # a checkout: what we run is what the stages run
        python_path = os.pathsep.join(filter(None, [package_parent, python_path]))
    environment = {
        **git.isolated_env(),  # a user's ignore file would make DVC refuse its own .dvc files
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "SHELL": _dvc_shell(),
        "DVC_NO_ANALYTICS": "1",
        # Waiting threads spin only briefly. On a busy machine, spinning as long as they like by default made a
        # training step 4 times slower; never spinning costs a fifth on an idle one.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
        # Detectron2's libraries still script functions, which torch announces to change on every import.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script"),
    }
    return {**environment, "PYTHONPATH": python_path} if python_path else environment


def _dvc_shell() -> str:
    """Return the shell through which DVC starts a stage.

    Bash replaces itself by a single command, so that the stage is DVC's own child and ends when DVC is killed;
    Debian's sh stays in between and would leave the stage running.
    """
    return shutil.which("bash") or "/bin/sh"


def run_dvc(root: Path, *arguments: str) -> str:
    """Run DVC in ``root`` and return its output.

    Raises:
        DvcError: carries DVC's last line.
    """
    lines: list[str] = []
    code = stream_dvc(root, arguments, lines.append)
    if code:
        last_error = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        raise DvcError(root, arguments[0], code, last_error)
    return "\n".join(lines)


def init_dvc(root: Path, cache: str | None = None) -> None:
    """Initialize DVC in the git repository ``root``, with the settings of a campaign.

    Args:
        root: a git repository.
        cache: folder that several repositories share, absolute or relative to ``root/.dvc``; None: its own.
    """
    run_dvc(root, "init")
    section: dict[str, dict[str, str]] = {}
    for key, value in (_DVC_CONFIG | ({"cache.dir": cache} if cache else {})).items():
        group, name = key.split(".")
        section.setdefault(group, {})[name] = value
    # One file of four lines; asking `dvc config` for each takes a second a line.
    text = "".join(
        f"[{group}]\n" + "".join(f"    {name} = {value}\n" for name, value in values.items())
        for group, values in section.items()
    )
    (root / ".dvc" / "config").write_text(text, encoding="utf-8")


def add(workspace: Workspace, *paths: Path) -> None:
    """Track source files with DVC; unchanged ones are skipped."""
    run_dvc(workspace.root, "add", *(path.relative_to(workspace.root).as_posix() for path in paths))


def has_default_remote(root: Path) -> bool:
    """Return whether a default remote is configured, in .dvc/config or .dvc/config.local."""
    configs = [(root / ".dvc" / name) for name in ("config", "config.local")]
    lines = [
        line.split("=") for config in configs if config.is_file() for line in config.read_text("utf-8").splitlines()
    ]
    return any(key.strip() == "remote" and value for key, *value in lines)


def locked_stages(workspace: Workspace) -> Mapping[str, Any]:
    """Return ``stages`` of dvc.lock: command, dependencies, parameters and outputs of each stage's last run."""
    path = workspace.root / "dvc.lock"
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = files.parse_yaml(path.read_text(encoding="utf-8"))["stages"]
    return content


def recorded_md5s(entry: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the MD5 of each of a stage's ``deps`` or ``outs`` by path, sorted by path."""
    return {item["path"]: item["md5"] for item in sorted(entry.get(kind, ()), key=lambda item: str(item["path"]))}


def is_clean(root: Path) -> bool:
    """Return whether ``dvc status`` reports no change."""
    return stream_dvc(root, ("status", "--quiet"), lambda _: None) == 0


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
    stages: dict[str, Any] = files.parse_yaml(packaged_file("dvc.yaml").read_text(encoding="utf-8"))["stages"]
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
