"""Git in a workspace: names of rounds and campaigns, commits and tags, and reading what git has stored.

Every command goes through ``run_git``, which ignores the user's own git settings: hooks, signing, line endings,
ignore files, colors and templates of a machine must not decide what a campaign's commits contain. Only the name and
the e-mail address of the author are taken from them.
"""

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

log = logging.getLogger(__name__)
SOURCE_PATHS = ("data", "quarantine", "deliveries")
"""Inputs of a round. ``.gitignore`` excludes the large files among them, or DVC tracks them."""
DERIVED_PATHS = (
    ".dvc", ".dvcignore", ".gitignore", "params.yaml", "dvc.yaml", "dvc.lock", "code_versions.json", "derived",
    *SOURCE_PATHS,
)  # fmt: skip
"""Everything a round consists of before its ledger is written."""
ALL_PATHS = (*DERIVED_PATHS, "rounds", "promotions.jsonl", "exports.jsonl", "owners.jsonl")

_COMMITTED = re.compile(
    r"\.dvc/(\.gitignore|config)|\.dvcignore|\.gitignore|params\.yaml|dvc\.(yaml|lock)|code_versions\.json"
    r"|(promotions|exports|owners)\.jsonl|rounds/round-\d{4,}\.json"
    r"|data/\.gitignore|data/(val|val_names|calibration)\.parquet|data/import_report\.json|data/labels/batch-\d{4,}\.json"
    r"|data/(images|index\.parquet|detections_at_selection|warm_start)\.dvc"
    r"|derived/([^/]+/)?\.gitignore|derived/[^/]+/[^/]+\.json|quarantine/[^/]+\.json"
    r"|deliveries/batch-\d{4,}/(delivery\.json|(manifest|refreshed)\.jsonl)"
)
"""Paths of the files that Gleaner commits, and no others below ``ALL_PATHS``."""
_MAX_OTHERS_BYTES = 100 << 20
"""Of a file whose size others decide, such as a refused answer; hosts of git refuse larger ones."""
_UNBOUNDED = re.compile(r"data/.*|deliveries/.*|rounds/.*")
_MAX_NAMED = 3
_DEFAULT_IDENTITY = {"user.name": "Gleaner", "user.email": "gleaner@localhost"}
_COMMANDS_WITH_AUTHOR = ("commit", "tag", "var")
_CONFIG = Path(__file__).with_name("gitconfig")
_KEPT = re.compile(r"GIT_(AUTHOR|COMMITTER)_(NAME|EMAIL|DATE)$|GIT_EXEC_PATH$|GIT_CONFIG(_GLOBAL|_SYSTEM|_NOSYSTEM)$")
_MAX_NAME_LENGTH = 40


# Names


def round_tag(round_number: int) -> str:
    """Return the tag of a published round: ``round-0003``."""
    return f"round-{round_number:04d}"


def campaign_id(root: Path) -> str:
    """Return the hash of the first commit: equal in every clone, different for every campaign."""
    return run_git(root, "rev-list", "--max-parents=0", "HEAD").splitlines()[-1]


def campaign_key(workspace: Workspace) -> str:
    """Return a readable unique name: the folder's name and 8 digits of the campaign's id, in a-z, 0-9 and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", workspace.root.resolve().name.lower()).strip("-")[:_MAX_NAME_LENGTH].strip("-")
    return f"{name or 'campaign'}-{campaign_id(workspace.root)[:8]}"


# Repository, commits and tags


def init_repository(root: Path) -> None:
    """Make ``root`` a repository on branch main, without the hooks and ignore files of a template."""
    run_git(root, "init", "--quiet", "--initial-branch=main", "--object-format=sha1", "--template=")


def committer(root: Path) -> str:
    """Return the name and address that commits are made with."""
    return run_git(root, "var", "GIT_COMMITTER_IDENT").rsplit(" ", 2)[0]  # without the time


def commit(workspace: Workspace, message: str, paths: Sequence[str] = ALL_PATHS) -> str:
    """Commit the changes of Gleaner's own files below ``paths``, if any, and return the hash of the commit with them.

    Other files there are named in the log and left alone. Changes that the user has staged stay staged.
    """
    root = workspace.root
    own, foreign = changes(root, paths)
    if foreign:
        more = f" and {len(foreign) - _MAX_NAMED} more" if len(foreign) > _MAX_NAMED else ""
        names = ", ".join(foreign[:_MAX_NAMED])
        log.warning("Not committed, since no run has written it: %s%s. Move it elsewhere, or commit it.", names, more)
    if not own:
        return head_commit(root)
    from_stdin = ("--pathspec-from-file=-", "--pathspec-file-nul")
    run_git(root, "add", "--all", *from_stdin, stdin="\0".join(own))
    # Without renames: git would list the new name alone, and the removal of the old one would stay staged.
    listed = set(run_git(root, "diff", "--cached", "--no-renames", "--name-only", "-z").split("\0"))
    changed = [path for path in own if path in listed]
    if changed:
        options = ("--quiet", "--no-verify", "--only", *from_stdin)
        run_git(root, "commit", "--message", message, *options, stdin="\0".join(changed))
    return head_commit(root)


def changes(root: Path, paths: Sequence[str] = ALL_PATHS) -> tuple[list[str], list[str]]:
    """Return the changed, new and removed files below ``paths``: those that Gleaner commits, and all others."""
    options = ("--porcelain", "--no-renames", "--untracked-files=all", "-z")
    known = [path for path in paths if (root / path).exists() or run_git(root, "ls-files", "--", path)]
    if not known:  # without a path, git would list everything
        return [], []
    status = os.fsdecode(_checked(root, ("status", *options, "--", *known)))
    names = [entry[3:] for entry in status.split("\0") if entry]
    own = [name for name in names if _is_committed(root, name)]
    return own, sorted(set(names) - set(own))


def _is_committed(root: Path, name: str) -> bool:
    if _COMMITTED.fullmatch(name) is None:
        return False
    path = root / name
    return bool(_UNBOUNDED.fullmatch(name)) or not path.is_file() or path.stat().st_size <= _MAX_OTHERS_BYTES


def head_commit(root: Path) -> str:
    """Return the hash of the commit checked out, 40 hex digits."""
    return run_git(root, "rev-parse", "HEAD")


def has_tag(root: Path, tag: str) -> bool:
    """Return whether the tag exists."""
    return bool(run_git(root, "tag", "--list", tag))


def set_tag(root: Path, tag: str, message: str) -> None:
    """Tag the commit checked out; an existing tag is not moved."""
    if not has_tag(root, tag):
        run_git(root, "tag", "--annotate", "--message", message, tag)


def require_branch(root: Path) -> None:
    """Refuse to work on an old round that was checked out for inspection.

    Raises:
        UserError: HEAD is detached.
    """
    if run_git(root, "branch", "--show-current") == "":
        position = run_git(root, "describe", "--tags", "--always")
        raise UserError(
            root, f"the checked out commit is {position}, expected a branch", "Run: git switch main && dvc checkout"
        )


# Objects


@dataclass(frozen=True)
class TagObject:
    """An annotated tag."""

    name: str
    commit: str
    message: str
    signed: bool


def read_blob(root: Path, revision: str, path: str) -> bytes | None:
    """Return a file's bytes at a revision; None where the revision has no such file or it is unreadable."""
    result = _run(root, ["cat-file", "blob", f"{revision}:{path}"])
    return None if result.returncode else result.stdout


def list_paths(root: Path, revision: str, folder: str) -> list[str]:
    """Return the paths of the files below ``folder`` at a revision, relative to the root."""
    listed = run_git(root, "ls-tree", "-r", "-z", "--name-only", revision, "--", folder)
    return [path for path in listed.split("\0") if path]


def read_tag_object(root: Path, name: str) -> TagObject | None:
    """Return the annotated tag; None where it does not exist or is a lightweight one."""
    try:
        content = run_git(root, "cat-file", "tag", f"refs/tags/{name}")
    except UserError:
        return None
    header, _, message = content.partition("\n\n")
    fields = dict(line.split(" ", 1) for line in header.splitlines() if " " in line)
    return TagObject(fields.get("tag", ""), fields.get("object", ""), message, "-----BEGIN " in message)


def is_ancestor(root: Path, earlier: str, later: str) -> bool:
    """Return whether the history of ``later`` contains ``earlier``; False where one of them is unknown."""
    return _run(root, ["merge-base", "--is-ancestor", "--end-of-options", earlier, later]).returncode == 0


# Commands


def run_git(root: Path, *arguments: str, stdin: str = "", user_config: bool = False) -> str:
    """Run git in ``root`` without prompts and return its output without surrounding blanks.

    Args:
        root: working directory.
        arguments: of git.
        stdin: text for its standard input.
        user_config: read the user's git settings, as verifying a signature needs.

    Raises:
        UserError: git is missing or fails; carries git's message.
    """
    return os.fsdecode(_checked(root, arguments, stdin=stdin, user_config=user_config)).strip()


def _checked(root: Path, arguments: Sequence[str], *, stdin: str = "", user_config: bool = False) -> bytes:
    result = _run(root, arguments, stdin=stdin, user_config=user_config)
    if result.returncode:
        output = " ".join((result.stderr or result.stdout).decode(errors="replace").split())
        raise UserError(root, f"git {arguments[0]} ended with code {result.returncode} ({output}), expected 0")
    return result.stdout


def isolated_env() -> dict[str, str]:
    """Return the environment without the user's git settings, for other programs that read git's configuration."""
    kept = {name: value for name, value in _user_env().items() if not name.startswith("GIT_CONFIG")}
    return {**kept, "GIT_ATTR_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": str(_CONFIG), "GIT_CONFIG_NOSYSTEM": "1"}


def _user_env() -> dict[str, str]:
    """Return the environment without the variables that point git at another repository, as inside a hook."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or _KEPT.match(name)}


def _run(
    root: Path, arguments: Sequence[str], *, stdin: str = "", user_config: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    settings = [f"include.path={_CONFIG}"]
    if arguments[0] in _COMMANDS_WITH_AUTHOR:
        settings += [f"{key}={value}" for key, value in _identity(root).items()]
    options = [part for setting in settings for part in ("-c", setting)]
    return _execute([*options, *arguments], root, _user_env() if user_config else isolated_env(), stdin)


def _identity(root: Path) -> dict[str, str]:
    """Return name and e-mail address as the user has configured them, for this repository or for all."""
    found = {key: _execute(["config", "--get", key], root, _user_env()) for key in _DEFAULT_IDENTITY}
    return {
        key: result.stdout.decode(errors="replace").strip() or _DEFAULT_IDENTITY[key] for key, result in found.items()
    }


def _execute(
    arguments: Sequence[str], root: Path, environment: dict[str, str], stdin: str = ""
) -> "subprocess.CompletedProcess[bytes]":
    # The folder may belong to another user, as on a share or in a container; its hooks are not run.
    trusted = [f"safe.directory={folder}" for folder in sorted({str(root.absolute()), str(root.resolve())})]
    command = ["git", *(part for setting in trusted for part in ("-c", setting)), *arguments]
    try:
        return subprocess.run(
            command,
            cwd=root,
            env={**environment, "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            input=os.fsencode(stdin),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git", "the program is missing, expected it on PATH", "Install git.") from None
