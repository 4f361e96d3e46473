"""The ledger of a round, ``rounds/round-0003.json``: read it and identify what it records.

The ledger is the record of a round; Prefect, MLflow and DVC are views on it. Each ledger holds the SHA-256 of the
one before, so that a change of a past round is found. ``flows.provenance.ledger_writer`` writes it.
"""

from dataclasses import dataclass
from typing import Any

from flows.workspace.dvc import locked_stages
from flows.workspace.state import newest_round
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

LEDGER_FORMAT = 2
"""Raised when a field changes its meaning."""


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
