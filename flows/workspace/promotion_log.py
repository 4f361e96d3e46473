"""``promotions.jsonl``: every decision on who is champion.

Lines are only added; each holds the digest of the one before, so none can be altered or left out unseen.
MLflow's alias follows this file, never the other way round.
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
    """A model version, and which model that is."""

    version: int
    round: int
    sha256: str | None
    """Of the teacher's file; None where a ledger of format 1 did not say."""


class Decision(_LogEntry):
    """One line of the log."""

    number: int
    """Counts from 0."""
    previous_sha256: str | None
    """Of the line before, without its line break."""
    key: str
    """The same decision, made again after a kill, has the same key and is not written again."""
    action: Action
    timestamp: str
    """ISO 8601 with time zone."""
    author: str
    previous_champion: ModelRecord | None
    """Champion until then."""
    model: ModelRecord
    """Champion from then on; with ``refuse``, the one that does not become it."""
    reason: str
    gate: dict[str, Any] | None
    """What the gate found, and its figures; None where it was not asked."""


def read_decisions(workspace: Workspace) -> list[Decision]:
    """Every decision, oldest first.

    Raises:
        UserError: a line is not one.
    """
    decisions = []
    for number, line in enumerate(_read_lines(workspace)):
        try:
            decisions.append(Decision.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"line {number + 1} is no decision ({first['msg']}), expected the log as Gleaner wrote it"
            raise UserError(workspace.promotions, problem, "Restore it: git checkout promotions.jsonl") from None
    return decisions


def first_corrupt_line(workspace: Workspace) -> int | None:
    """Number, from 1, of the first line that does not follow from the one before; None: the log is whole."""
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
    """Write one decision down, once; the file is whole at any moment."""
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
    """The decisions that made a model champion, oldest first."""
    return [decision for decision in read_decisions(workspace) if decision.action != "refuse"]


def last_decision(workspace: Workspace, round_number: int) -> Decision | None:
    """The newest decision about the model of a round."""
    return next((made for made in reversed(read_decisions(workspace)) if made.model.round == round_number), None)


def current_champion(workspace: Workspace, ledgers: Mapping[int, Mapping[str, Any]]) -> ModelRecord | None:
    """The champion as the log has it; before there was a log, as ledgers of format 1 have it."""
    promoted = promotions(workspace)
    if promoted:
        return promoted[-1].model
    for number in sorted(ledgers, reverse=True):
        if ledgers[number]["mlflow"].get("promotion", {}).get("promoted"):
            return model_record(ledgers[number])
    return None


def model_record(ledger: Mapping[str, Any]) -> ModelRecord:
    """A round's model as the log names it."""
    digest = ledger.get("teacher", {}).get("sha256")
    return ModelRecord(version=ledger["mlflow"]["model_version"], round=ledger["round"], sha256=digest)


def _read_lines(workspace: Workspace) -> list[str]:
    if not workspace.promotions.is_file():
        return []
    return workspace.promotions.read_bytes().decode("utf-8", errors="replace").splitlines()


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
