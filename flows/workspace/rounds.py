"""Read the rounds of a campaign from its files: the newest one, which are published, their ledgers and stage logs.

The files are the only place where the state of a campaign is stored. The ledger, ``rounds/round-0003.json``, is the
record of a round; Prefect, MLflow and DVC are views on it. Each ledger holds the SHA-256 of the one before, so that a
change of a past round is found. ``flows.provenance.ledger_writer`` writes it. Logs and durations of stages are below
``.gleaner/`` and therefore never part of a result.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows.workspace import git
from flows.workspace.dvc import locked_stages
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

_BATCH_FILE_PATTERN = re.compile(r"batch-(\d{4,})\.json")
LEDGER_FORMAT = 2
"""Raised when a field changes its meaning."""


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
    outcome: Literal["completed", "waiting_for_labels", "held", "pool_exhausted"]
    """A round was published; no labels were returned; stopping is advised and no image is open; or no unlabeled image
    is left."""
    message: str


@dataclass(frozen=True)
class MlflowRef:
    """Names of a round in MLflow: its experiment, run, registered model and model version."""

    experiment: str
    run_id: str
    model_name: str
    model_version: int


def read_ledger(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """Read the ledger of one round.

    Raises:
        UserError: the file is missing, is not JSON, or has another format than ``LEDGER_FORMAT``.
    """
    path = workspace.ledger(round_number)
    content: dict[str, Any] = files.read_json(path)
    if content.get("format") != LEDGER_FORMAT:
        problem = f"format is {content.get('format')!r}, expected {LEDGER_FORMAT}"
        raise UserError(path, problem, "Use the version of Gleaner that wrote it.")
    return content


def all_ledgers(workspace: Workspace) -> list[dict[str, Any]]:
    """Read the ledgers of all finished rounds, by round number."""
    last = newest_round(workspace)
    return [read_ledger(workspace, number) for number in range(last + 1) if workspace.ledger(number).is_file()]


def lost_tag_hint(tag: str) -> str:
    """Return what to do about a tag that is not in the history of the branch."""
    return f"Go on from it: git merge {tag}. Or give that round up for good: git tag --delete {tag}"


def ledger_sha256(workspace: Workspace, round_number: int) -> str:
    """Return the SHA-256 of a ledger file, to which the next ledger, MLflow and the git tag refer."""
    return files.sha256_file(workspace.ledger(round_number))


def round_fingerprint(workspace: Workspace) -> str:
    """Return the SHA-256 of the stages in dvc.lock.

    Equal inputs, code, parameters and outputs give equal fingerprints.
    """
    return files.sha256_json(locked_stages(workspace))


def read_history_entry(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """Read the round's entry of the campaign's history, written by the report stage.

    Raises:
        UserError: the history has not exactly one entry of that round.
    """
    path = workspace.derived("report") / "history.json"
    entries = [entry for entry in files.read_json(path) if entry["round"] == round_number]
    if len(entries) != 1:
        problem = f"the number of entries of round {round_number} is {len(entries)}, expected 1"
        raise UserError(path, problem, "Run: dvc repro --single-item report")
    entry: dict[str, Any] = entries[0]
    return entry


def stage_log(workspace: Workspace, round_number: int, stage: str) -> Path:
    """Return the log file of a stage in one round; all attempts append to it."""
    return _folder(workspace, round_number) / f"{stage}.log"


def record_seconds(workspace: Workspace, round_number: int, stage: str, seconds: float, *, skipped: bool) -> None:
    """Record the duration of the attempt that did the work, not of a later one that skipped it."""
    path = stage_log(workspace, round_number, stage).with_suffix(".json")
    if not skipped or not path.exists():
        files.write_json(path, {"seconds": seconds, "skipped": skipped})


def stage_seconds(workspace: Workspace, round_number: int) -> dict[str, float]:
    """Return the seconds that each stage of a round took, DVC's hashing included."""
    paths = sorted(_folder(workspace, round_number).glob("*.json"))
    return {path.stem: float(files.read_json(path)["seconds"]) for path in paths}


def skipped_stages(workspace: Workspace, round_number: int) -> set[str]:
    """Return the stages of a round that DVC skipped or took from a shared cache."""
    paths = _folder(workspace, round_number).glob("*.json")
    return {path.stem for path in paths if files.read_json(path)["skipped"]}


def _folder(workspace: Workspace, round_number: int) -> Path:
    return workspace.root / ".gleaner" / "logs" / f"round-{round_number:04d}"
