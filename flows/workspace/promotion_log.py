"""The promotion log, ``promotions.jsonl``: every decision about the champion.

Lines are only appended. Each holds the SHA-256 of the line before, so that an altered or removed line is detected.
The alias in MLflow is set from this file, never the other way round.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files

Action = Literal["promote", "refuse", "rollback"]


class _LogEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_LogEntry):
    """A model version as the log names it."""

    version: int
    round: int
    sha256: str
    """SHA-256 of the teacher's file."""


class Decision(_LogEntry):
    """One line of the log."""

    number: int
    """Position in the log, from 0."""
    previous_sha256: str | None
    """SHA-256 of the line before, without its line break; None in the first line."""
    key: str
    """Idempotency key: a decision repeated after a crash has the same key and is not appended again."""
    action: Action
    timestamp: str
    """ISO 8601 with time zone."""
    author: str
    previous_champion: ModelRecord | None
    """The champion before the decision."""
    model: ModelRecord
    """The champion after the decision; with ``refuse``, the model that was refused."""
    reason: str
    gate: dict[str, Any] | None
    """Result and metrics of the gate; None where it was not evaluated."""


def read_decisions(workspace: Workspace) -> list[Decision]:
    """Read all decisions, oldest first.

    Raises:
        UserError: a line is not a decision.
    """
    decisions = []
    for number, line in enumerate(_read_lines(workspace)):
        try:
            decisions.append(Decision.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"line {number + 1} is not a decision ({first['msg']})"
            raise UserError(workspace.promotions, problem, "Run: git checkout promotions.jsonl") from None
    return decisions


def first_corrupt_line(workspace: Workspace) -> int | None:
    """Return the number, from 1, of the first line that does not match the line before; None for an unaltered log."""
    previous = None
    for number, (line, decision) in enumerate(zip(_read_lines(workspace), read_decisions(workspace), strict=True)):
        if decision.number != number or decision.previous_sha256 != previous:
            return number + 1
        previous = _sha256(line)
    return None


def append_decision(
    workspace: Workspace,
    key: str,
    action: Action,
    *,
    author: str,
    previous_champion: ModelRecord | None,
    model: ModelRecord,
    reason: str,
    gate: dict[str, Any] | None,
) -> Decision:
    """Append a decision unless the log has its key already, and return it; the file is replaced atomically."""
    decisions, lines = read_decisions(workspace), _read_lines(workspace)
    for decision in decisions:
        if decision.key == key:
            return decision
    decision = Decision(
        number=len(lines),
        previous_sha256=_sha256(lines[-1]) if lines else None,
        key=key,
        action=action,
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        author=author,
        previous_champion=previous_champion,
        model=model,
        reason=reason,
        gate=gate,
    )
    content = "".join(f"{line}\n" for line in (*lines, decision.model_dump_json()))
    files.write_bytes(workspace.promotions, content.encode())
    return decision


def promotions(workspace: Workspace) -> list[Decision]:
    """Read the decisions that made a model champion, promotions and rollbacks, oldest first."""
    return [decision for decision in read_decisions(workspace) if decision.action != "refuse"]


def last_decision(workspace: Workspace, round_number: int) -> Decision | None:
    """Return the newest decision about the model of a round, if there is one."""
    decisions = reversed(read_decisions(workspace))
    return next((decision for decision in decisions if decision.model.round == round_number), None)


def current_champion(workspace: Workspace) -> ModelRecord | None:
    """Return the champion by the log; None before the first promotion."""
    promoted = promotions(workspace)
    return promoted[-1].model if promoted else None


def model_record(ledger: Mapping[str, Any]) -> ModelRecord:
    """Build the log's record of the teacher of a round from the round's ledger."""
    return ModelRecord(
        version=ledger["mlflow"]["model_version"], round=ledger["round"], sha256=ledger["teacher"]["sha256"]
    )


def _read_lines(workspace: Workspace) -> list[str]:
    if not workspace.promotions.is_file():
        return []
    return files.json_lines(workspace.promotions.read_bytes(), errors="replace")


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
