"""Git in a workspace: who commits, what belongs to a round, its tag."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import UserError
from tasks.paths import Workspace

SOURCES = ("data", "quarantine", "deliveries")
"""What comes from outside; the large files among it are in ``.gitignore``, or DVC has them."""
DERIVED = (
    ".dvc", ".dvcignore", ".gitignore", "params.yaml", "dvc.yaml", "dvc.lock", "code.json", "derived",
    *SOURCES,
)  # fmt: skip
"""A round before its ledger is written."""
EVERYTHING = (*DERIVED, "rounds", "promotions.jsonl")
_NAME, _EMAIL = "Gleaner", "gleaner@localhost"
_NIGHTLY = ("-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", "-c", "core.editor=true")


def git(root: Path, *arguments: str) -> str:
    """Run git in ``root`` without ever asking anything, return what it prints.

    Raises:
        UserError: git is missing or refuses; carries git's own words.
    """
    command = ["git", *_NIGHTLY, *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git", "the program is missing, expected it on PATH", "Install git.") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(root, f"git {arguments[0]} ended with code {done.returncode} ({said}), expected 0")
    return done.stdout.strip()


def create_repository(root: Path) -> None:
    """Make ``root`` a repository of its own, on branch main, with somebody to commit as."""
    git(root, "init", "--quiet", "--initial-branch=main")
    ensure_identity(root)


def ensure_identity(root: Path) -> None:
    """Use the user's name; where none is configured, one for this repository alone."""
    for key, value in (("user.name", _NAME), ("user.email", _EMAIL)):
        if not _configured(root, key):
            git(root, "config", "--local", key, value)


def commit(workspace: Workspace, message: str, paths: Sequence[str] = EVERYTHING) -> str:
    """Commit what changed below ``paths``, if anything; return the revision that holds it.

    Other changes the user has staged stay staged.
    """
    root = workspace.root
    known = [path for path in paths if (root / path).exists() or git(root, "ls-files", "--", path)]
    if not known:  # without a path, git would take everything
        return revision(root)
    git(root, "add", "--all", "--", *known)
    changed = git(root, "diff", "--cached", "--name-only", "-z", "--", *known).split("\0")
    if any(changed):
        ensure_identity(root)
        git(
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
    return revision(root)


def revision(root: Path) -> str:
    """The commit checked out, 40 hex digits."""
    return git(root, "rev-parse", "HEAD")


def campaign_id(root: Path) -> str:
    """The first commit: the same in every clone, and of no other campaign."""
    return git(root, "rev-list", "--max-parents=0", "HEAD").splitlines()[-1]


def round_tag(round_number: int) -> str:
    """Tag of a published round."""
    return f"round-{round_number:04d}"


def has_tag(root: Path, tag: str) -> bool:
    """Whether the tag exists."""
    return bool(git(root, "tag", "--list", tag))


def set_tag(root: Path, tag: str, message: str) -> None:
    """Tag the commit that is checked out; a tag that is there already stays where it is."""
    if not has_tag(root, tag):
        ensure_identity(root)
        git(root, "tag", "--annotate", "--message", message, tag)


def require_branch(root: Path) -> None:
    """Refuse to work on an old round that somebody has checked out to look at.

    Raises:
        UserError: HEAD is detached.
    """
    if git(root, "branch", "--show-current") == "":
        at = git(root, "describe", "--tags", "--always")
        raise UserError(
            root, f"the checked out commit is {at}, expected a branch", "Run: git switch main && dvc checkout"
        )


def _configured(root: Path, key: str) -> bool:
    """Whether git knows a value; environment variables such as GIT_AUTHOR_NAME count."""
    variable = {"user.name": "GIT_AUTHOR_NAME", "user.email": "GIT_AUTHOR_EMAIL"}[key]
    found = subprocess.run(["git", "config", key], cwd=root, env=_environment(), capture_output=True, check=False)
    return found.returncode == 0 or bool(os.environ.get(variable))


def _environment() -> dict[str, str]:
    """Ours, without what a git hook that started us would leak: GIT_DIR points at another repository."""
    leaked = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in leaked}
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
