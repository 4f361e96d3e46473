"""Git in a workspace: who commits, what belongs to a round, its tag.

What a campaign is called where names are keys.

What git has stored: files as they were at a revision, and what a tag really is.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

SOURCE_PATHS = ("data", "quarantine", "deliveries")
"""What comes from outside; the large files among it are in ``.gitignore``, or DVC has them."""
DERIVED_PATHS = (
    ".dvc", ".dvcignore", ".gitignore", "params.yaml", "dvc.yaml", "dvc.lock", "code_versions.json", "derived",
    *SOURCE_PATHS,
)  # fmt: skip
"""A round before its ledger is written."""
ALL_PATHS = (*DERIVED_PATHS, "rounds", "promotions.jsonl")
_DEFAULT_NAME, _DEFAULT_EMAIL = "Gleaner", "gleaner@localhost"
_GIT_OPTIONS = ("-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", "-c", "core.editor=true")


def run_git(root: Path, *arguments: str) -> str:
    """Run git in ``root`` without ever asking anything, return what it prints.

    Raises:
        UserError: git is missing or refuses; carries git's own words.
    """
    command = ["git", *_GIT_OPTIONS, *arguments]
    try:
        result = subprocess.run(
            command,
            cwd=root,
            env=_git_env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git", "the program is missing, expected it on PATH", "Install git.") from None
    if result.returncode:
        output = " ".join((result.stderr or result.stdout).split())
        raise UserError(root, f"git {arguments[0]} ended with code {result.returncode} ({output}), expected 0")
    return result.stdout.strip()


def init_repository(root: Path) -> None:
    """Make ``root`` a repository of its own, on branch main, with somebody to commit as."""
    run_git(root, "init", "--quiet", "--initial-branch=main")
    ensure_identity(root)


def ensure_identity(root: Path) -> None:
    """Use the user's name; where none is configured, one for this repository alone."""
    for key, value in (("user.name", _DEFAULT_NAME), ("user.email", _DEFAULT_EMAIL)):
        if not _has_identity(root, key):
            run_git(root, "config", "--local", key, value)


def commit(workspace: Workspace, message: str, paths: Sequence[str] = ALL_PATHS) -> str:
    """Commit what changed below ``paths``, if anything; return the revision that holds it.

    Other changes the user has staged stay staged.
    """
    root = workspace.root
    known = [path for path in paths if (root / path).exists() or run_git(root, "ls-files", "--", path)]
    if not known:  # without a path, git would take everything
        return head_commit(root)
    run_git(root, "add", "--all", "--", *known)
    changed = run_git(root, "diff", "--cached", "--name-only", "-z", "--", *known).split("\0")
    if any(changed):
        ensure_identity(root)
        run_git(
            root,
            "commit",
            "--quiet",
            "--no-verify",
            "--message",
            message,
            "--only",
            "--",
            *filter(None, changed),
        )
    return head_commit(root)


def head_commit(root: Path) -> str:
    """The commit checked out, 40 hex digits."""
    return run_git(root, "rev-parse", "HEAD")


def campaign_id(root: Path) -> str:
    """The first commit: the same in every clone, and of no other campaign."""
    return run_git(root, "rev-list", "--max-parents=0", "HEAD").splitlines()[-1]


def round_tag(round_number: int) -> str:
    """Tag of a published round."""
    return f"round-{round_number:04d}"


def has_tag(root: Path, tag: str) -> bool:
    """Whether the tag exists."""
    return bool(run_git(root, "tag", "--list", tag))


def set_tag(root: Path, tag: str, message: str) -> None:
    """Tag the commit that is checked out; a tag that is there already stays where it is."""
    if not has_tag(root, tag):
        ensure_identity(root)
        run_git(root, "tag", "--annotate", "--message", message, tag)


def require_branch(root: Path) -> None:
    """Refuse to work on an old round that somebody has checked out to look at.

    Raises:
        UserError: HEAD is detached.
    """
    if run_git(root, "branch", "--show-current") == "":
        position = run_git(root, "describe", "--tags", "--always")
        raise UserError(
            root, f"the checked out commit is {position}, expected a branch", "Run: git switch main && dvc checkout"
        )


def _has_identity(root: Path, key: str) -> bool:
    """Whether git knows a value; environment variables such as GIT_AUTHOR_NAME count."""
    variable = {"user.name": "GIT_AUTHOR_NAME", "user.email": "GIT_AUTHOR_EMAIL"}[key]
    result = subprocess.run(["git", "config", key], cwd=root, env=_git_env(), capture_output=True, check=False)
    return result.returncode == 0 or bool(os.environ.get(variable))


def _git_env() -> dict[str, str]:
    """Ours, without what a git hook that started us would leak: GIT_DIR points at another repository."""
    hook_variables = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in hook_variables}
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


_MAX_NAME_LENGTH = 40


def campaign_key(workspace: Workspace) -> str:
    """The folder's name and eight digits of the campaign's id, in a-z, 0-9 and dashes: unique and readable."""
    name = re.sub(r"[^a-z0-9]+", "-", workspace.root.resolve().name.lower()).strip("-")[:_MAX_NAME_LENGTH].strip("-")
    return f"{name or 'campaign'}-{campaign_id(workspace.root)[:8]}"


@dataclass(frozen=True)
class TagObject:
    """An annotated tag."""

    name: str
    commit: str
    message: str
    signed: bool


def read_blob(root: Path, revision: str, path: str) -> bytes | None:
    """A file's bytes at a revision; None where it was not there or cannot be read."""
    result = subprocess.run(
        ["git", "cat-file", "blob", f"{revision}:{path}"], cwd=root, stdin=subprocess.DEVNULL, capture_output=True
    )
    return None if result.returncode else result.stdout


def list_paths(root: Path, revision: str, folder: str) -> list[str]:
    """Paths below ``folder`` at a revision, relative to the root."""
    listed = run_git(root, "ls-tree", "-r", "-z", "--name-only", revision, "--", folder)
    return [path for path in listed.split("\0") if path]


def read_tag_object(root: Path, name: str) -> TagObject | None:
    """The tag, if it is there and annotated."""
    try:
        content = run_git(root, "cat-file", "tag", f"refs/tags/{name}")
    except UserError:
        return None
    header, _, message = content.partition("\n\n")
    fields = dict(line.split(" ", 1) for line in header.splitlines() if " " in line)
    return TagObject(fields.get("tag", ""), fields.get("object", ""), message, "-----BEGIN " in message)


def is_ancestor(root: Path, earlier: str, later: str) -> bool:
    """Whether ``later`` holds the history of ``earlier``."""
    result = subprocess.run(
        ["git", "merge-base", "--is-ancestor", earlier, later],
        cwd=root, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    return result.returncode == 0
