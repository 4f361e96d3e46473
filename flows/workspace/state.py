"""Read a campaign's state from its files, the only place where it is stored."""

import re
from dataclasses import dataclass
from typing import Literal

from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_BATCH_FILE_PATTERN = re.compile(r"batch-(\d{4,})\.json")


def newest_round(workspace: Workspace) -> int:
    """Return the number of the newest label batch, which is that of the current round.

    Raises:
        UserError: there is no batch, or one is missing in between.
    """
    names = [path.name for path in workspace.labels.glob("batch-*.json")] if workspace.labels.is_dir() else []
    batches = sorted(int(match[1]) for name in names if (match := _BATCH_FILE_PATTERN.fullmatch(name)))
    if not batches:
        raise UserError(
            workspace.labels, "the folder holds no label batch, expected batch-0000.json", "Run: gleaner init"
        )
    gaps = sorted(set(range(batches[-1])) - set(batches))
    if gaps:
        name = workspace.label_batch(gaps[0]).name
        raise UserError(
            workspace.labels,
            f"{name} is missing, expected every batch up to {batches[-1]}",
            "Restore it from git.",
        )
    return batches[-1]


def newest_round_or_none(workspace: Workspace) -> int | None:
    """Number of the newest label batch; None where the label batches cannot be read."""
    try:
        return newest_round(workspace)
    except UserError:
        return None


def is_published(workspace: Workspace, round_number: int) -> bool:
    """Return whether a round is finished: its tag is the last change that publishing makes in the workspace."""
    ledger = workspace.ledger(round_number)
    return ledger.is_file() and git.has_tag(workspace.root, git.round_tag(round_number))


def last_published_round(workspace: Workspace) -> int:
    """Return the newest finished round; -1 before the first."""
    newest = newest_round(workspace)
    return newest if is_published(workspace, newest) else newest - 1


@dataclass(frozen=True)
class RunResult:
    """Result of a run."""

    round_number: int
    outcome: Literal["completed", "waiting_for_labels", "pool_exhausted"]
    """A round was published; no labels were returned; or no unlabeled image is left."""
    message: str
