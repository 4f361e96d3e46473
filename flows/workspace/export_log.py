"""The log of exports, ``exports.jsonl``: every detector that ``gleaner export`` registered, and its model.

Lines are only appended. Lineage and audit find an export by it.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.workspace.promotion_log import ModelRecord
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files


class ExportRecord(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Idempotency key: the same network of the same model has the same key and is not appended again."""
    timestamp: str
    """ISO 8601 with time zone."""
    author: str
    model: ModelRecord
    """The model that was exported."""
    format: str
    precision: str
    sha256_by_file: dict[str, str]
    """SHA-256 of each file of the export."""
    map_original: float
    """mAP of the original in percent, measured beside the export."""
    map_export: float
    name: str
    """Registered model in MLflow."""
    version: int
    """Its version."""
    prune_frac: float = 0.0
    """Fraction of channels that was removed; written where it is not 0."""


def read_exports(workspace: Workspace) -> list[ExportRecord]:
    """Read all exports, oldest first.

    Raises:
        UserError: a line is no record of an export.
    """
    if not workspace.exports.is_file():
        return []
    records = []
    for number, line in enumerate(files.json_lines(workspace.exports.read_bytes(), errors="replace")):
        try:
            records.append(ExportRecord.model_validate_json(line))
        except ValidationError as error:
            problem = f"line {number + 1} is no record of an export ({error.errors()[0]['msg']})"
            raise UserError(workspace.exports, problem, "Run: git checkout exports.jsonl") from None
    return records


def append_export(workspace: Workspace, record: ExportRecord) -> None:
    """Append a record unless the log has its key; the file is replaced atomically."""
    records = read_exports(workspace)
    if all(earlier.key != record.key for earlier in records):
        content = "".join(f"{entry.model_dump_json(exclude_defaults=True)}\n" for entry in (*records, record))
        files.write_bytes(workspace.exports, content.encode())
