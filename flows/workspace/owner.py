"""Tell a campaign's own folder from its copies, clones and restored backups.

A campaign's id is the hash of its first commit, which every copy has too. What a copy does not have is the place: a
random owner id stands in ``.gleaner/owner.json`` together with path, device, inode and machine of the folder. Git and
DVC never take that file along, and where a file copy did, the place is another. MLflow and label providers keep the
owner id with what they hold of the campaign, so that only one folder goes on with it.

Every change of the owner is a line of ``owners.jsonl``, which is committed.
"""

import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Self

from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

OWNERS_LOG = "owners.jsonl"
"""One JSON object a line: which folder became the campaign's own, when, and why."""
ADOPT_HINT = "To go on here, and nowhere else any more: gleaner adopt --reason TEXT"
_OWNER_ID = re.compile(r"[0-9a-f]{32}")
_MACHINE_ID = Path("/etc/machine-id")


class OwnerError(UserError):
    """The campaign belongs to another folder."""


class FolderState(Enum):
    """What the record says about the folder it lies in."""

    OWN = "own"
    MOVED = "moved"
    """The same folder under another name."""
    COPY = "copy"
    NEW = "new"
    """No record, and no round was published."""
    UNKNOWN = "unknown"
    """No record, but published rounds: a clone, or a restored backup."""


@dataclass(frozen=True)
class Place:
    """Where a folder is."""

    path: str
    device: int
    inode: int
    machine: str | None
    """Content of /etc/machine-id; None where there is none, as in most containers."""
    host: str
    """For messages only: it may change with every start of a container."""

    @classmethod
    def of(cls, root: Path) -> Self:
        """Return the place of a folder."""
        status = root.stat()
        machine = _MACHINE_ID.read_text(encoding="ascii", errors="replace").strip() if _MACHINE_ID.is_file() else ""
        return cls(str(root.resolve()), status.st_dev, status.st_ino, machine or None, socket.gethostname())

    def __str__(self) -> str:
        """Return the text for messages."""
        return f"{self.path} on {self.host}"

    def is_renamed(self, now: "Place") -> bool:
        """Whether ``now`` is the same folder of the same machine, which a rename keeps and a copy does not."""
        return (self.device, self.inode) == (now.device, now.inode) and self._may_be_machine_of(now)

    def is_same(self, now: "Place") -> bool:
        """Whether ``now`` has the same path, on the same machine or, as on a network share, with the same inode."""
        return self.path == now.path and (self._may_be_machine_of(now) or self.inode == now.inode)

    def _may_be_machine_of(self, now: "Place") -> bool:
        return None in (self.machine, now.machine) or self.machine == now.machine


@dataclass(frozen=True)
class Owner:
    """The one folder that goes on with a campaign."""

    owner_id: str
    """32 hex digits, random."""
    place: Place


def record_path(workspace: Workspace) -> Path:
    """Return the path of the record."""
    return workspace.root / ".gleaner" / "owner.json"


def read_owner(workspace: Workspace) -> Owner | None:
    """Return the owner in the folder's record; None where it is missing or damaged."""
    try:
        content: dict[str, Any] = files.read_json(record_path(workspace))
        owner = Owner(str(content["owner_id"]), Place(**content["place"]))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return owner if _OWNER_ID.fullmatch(owner.owner_id) else None


def folder_state(workspace: Workspace) -> FolderState:
    """Compare the record with the folder; changes nothing."""
    owner = read_owner(workspace)
    if owner is None:
        return FolderState.UNKNOWN if _has_published(workspace) else FolderState.NEW
    now = Place.of(workspace.root)
    if owner.place.is_same(now):
        return FolderState.OWN
    return FolderState.MOVED if owner.place.is_renamed(now) else FolderState.COPY


def ownership_problem(workspace: Workspace) -> str | None:
    """Say why this folder is not the campaign's own; None where it is."""
    state = folder_state(workspace)
    if state is FolderState.COPY:
        owner = read_owner(workspace)
        return f"the folder is a copy of {owner.place if owner else 'another'}, expected the campaign's own folder"
    if state is FolderState.UNKNOWN:
        return "the folder is a clone or a restored backup, expected the campaign's own folder"
    return None


def require_own_folder(workspace: Workspace) -> Owner:
    """Return the owner id of this folder; a new campaign gets one, and a renamed folder keeps its own.

    Raises:
        OwnerError: the folder is a copy, a clone or a restored backup.
    """
    problem = ownership_problem(workspace)
    if problem is not None:
        raise OwnerError(workspace.root, problem, ADOPT_HINT)
    owner = read_owner(workspace)
    if owner is None or folder_state(workspace) is FolderState.MOVED:
        owner = settle(workspace, None if owner is None else owner.owner_id)
    return owner


def settle(workspace: Workspace, owner_id: str | None) -> Owner:
    """Write the record for the folder where it now is; None: with a new owner id."""
    owner = Owner(owner_id or uuid.uuid4().hex, Place.of(workspace.root))
    files.write_json(record_path(workspace), asdict(owner))
    return owner


def log_adoption(workspace: Workspace, owner: Owner, reason: str, facts: Mapping[str, Any]) -> None:
    """Append a line to ``owners.jsonl`` and commit it; a repeated call after a crash appends nothing.

    Args:
        workspace: the campaign.
        owner: the folder that goes on with it.
        reason: given by the person who decided.
        facts: what was found: former owners, and rounds that are superseded.
    """
    path = workspace.root / OWNERS_LOG
    lines = files.json_lines(path.read_bytes(), errors="replace") if path.is_file() else []
    entry = {"owner_id": owner.owner_id, "place": str(owner.place), "reason": reason, **facts}
    key = files.sha256_json([entry, max(len(lines) - 1, 0)])
    if not lines or key not in lines[-1]:
        author = git.run_git(workspace.root, "var", "GIT_COMMITTER_IDENT").rsplit(" ", 2)[0]  # without the time
        times = {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), "author": author}
        line = json.dumps({**times, **entry, "key": files.sha256_json([entry, len(lines)])}, ensure_ascii=False)
        files.write_bytes(path, "".join(f"{one}\n" for one in (*lines, line)).encode())
    git.commit(workspace, f"Adopt the campaign: {reason}", (OWNERS_LOG,))


def _has_published(workspace: Workspace) -> bool:
    folder = workspace.root / "rounds"
    return folder.is_dir() and any(name.startswith("round-") for name in os.listdir(folder))
