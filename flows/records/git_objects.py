"""What git has stored: files as they were at a revision, and what a tag really is."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from flows import vcs
from tasks.errors import UserError


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
    listed = vcs.run_git(root, "ls-tree", "-r", "-z", "--name-only", revision, "--", folder)
    return [path for path in listed.split("\0") if path]


def read_tag_object(root: Path, name: str) -> TagObject | None:
    """The tag, if it is there and annotated."""
    try:
        content = vcs.run_git(root, "cat-file", "tag", f"refs/tags/{name}")
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
