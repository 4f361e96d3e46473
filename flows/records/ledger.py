"""``rounds/round-0003.json``: the record of one round. Prefect, MLflow and DVC are views on it.

Each ledger holds the digest of the one before, so a past round cannot be altered unseen.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows import vcs
from flows.data_versions import locked_stages, recorded_digests
from flows.labels.deliveries import MANIFEST
from flows.position import newest_round
from flows.records.ledger_sources import frozen_digests, label_batches, params_sha256, previous_model, teacher_record
from flows.records.provenance import provenance
from flows.stage_log import stage_seconds
from tasks import files
from tasks.errors import UserError
from tasks.paths import STAGES, Workspace

FORMAT = 2
"""Raised when a field changes its meaning. 1 lacked labels, frozen_sha256, teacher, previous_model and made_with, and
had the promotion in mlflow; it is now in promotions.jsonl. Format 1 can still be read."""
_READABLE = (1, FORMAT)


@dataclass(frozen=True)
class Tracked:
    """Where MLflow keeps a round."""

    experiment: str
    run_id: str
    model_name: str
    model_version: int


def round_fingerprint(workspace: Workspace) -> str:
    """Digest of all that DVC recorded: the same inputs, code, parameters and outputs give the same digest."""
    return files.sha256_json(locked_stages(workspace))


def read_ledger(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """One ledger.

    Raises:
        UserError: missing, not JSON, or of a format this Gleaner does not know.
    """
    path = workspace.ledger(round_number)
    content: dict[str, Any] = files.read_json(path)
    if content.get("format") not in _READABLE:
        problem = f"format is {content.get('format')!r}, expected one of {list(_READABLE)}"
        raise UserError(path, problem, "Use the Gleaner that wrote it, or a newer one.")
    return content


def all_ledgers(workspace: Workspace) -> list[dict[str, Any]]:
    """The ledgers of all rounds, by number."""
    last = newest_round(workspace)
    return [read_ledger(workspace, number) for number in range(last + 1) if workspace.ledger(number).is_file()]


def write_ledger(workspace: Workspace, round_number: int, git_revision: str, tracked: Tracked) -> None:
    """Record a round; a ledger of the very same derivation and run stays as it is, with its times."""
    path = workspace.ledger(round_number)
    fingerprint = round_fingerprint(workspace)
    if path.is_file():
        old = files.read_json(path)
        if old["derivation_sha256"] == fingerprint and old["mlflow"] == _mlflow(tracked):
            return
    files.write_json(
        path,
        {
            "format": FORMAT,
            "round": round_number,
            "tag": vcs.round_tag(round_number),
            "campaign": vcs.campaign_id(workspace.root),
            "previous_ledger_sha256": _previous(workspace, round_number),
            "git_revision": git_revision,
            **_digests(workspace, round_number),
            "labels": label_batches(workspace, round_number),
            "frozen_sha256": frozen_digests(workspace),
            "teacher": teacher_record(workspace),
            "previous_model": _previous_model(workspace, round_number),
            "derivation_sha256": fingerprint,
            "stages": _stages(workspace),
            "mlflow": _mlflow(tracked),
            "made_with": provenance(workspace),
            "figures": round_figures(workspace, round_number),
            "times": _times(workspace, round_number),
        },
    )


def round_figures(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """The round's entry in the campaign's history, as the report stage wrote it.

    Raises:
        UserError: the history has no entry of that round.
    """
    path = workspace.derived("report") / "history.json"
    entries = [entry for entry in files.read_json(path) if entry["round"] == round_number]
    if len(entries) != 1:
        problem = f"entries of round {round_number} are {len(entries)}, expected 1"
        raise UserError(path, problem, "Run: dvc repro --single-item report")
    figures: dict[str, Any] = entries[0]
    return figures


def _digests(workspace: Workspace, round_number: int) -> dict[str, Any]:
    return {
        "labels_sha256": files.sha256_file(workspace.label_batch(round_number)),
        "selection_sha256": files.sha256_file(workspace.derived("select") / "selection.parquet"),
        "manifest_sha256": files.sha256_file(workspace.derived("handoff") / MANIFEST),
        "params_sha256": files.sha256_file(workspace.params),
        "code": files.read_json(workspace.code_digests),
    }


def _previous(workspace: Workspace, round_number: int) -> str | None:
    return files.sha256_file(workspace.ledger(round_number - 1)) if round_number else None


def _previous_model(workspace: Workspace, round_number: int) -> dict[str, Any] | None:
    """The model whose claims decided which images batch ``round_number`` asked for."""
    return previous_model(workspace, read_ledger(workspace, round_number - 1)) if round_number else None


def _stages(workspace: Workspace) -> dict[str, Any]:
    """MD5 of each stage's inputs and outputs, and of the parameter values it read."""
    locked = locked_stages(workspace)
    return {
        stage: {
            "deps": recorded_digests(locked[stage], "deps"),
            "outs": recorded_digests(locked[stage], "outs"),
            "params_sha256": params_sha256(locked[stage]),
        }
        for stage in STAGES
        if stage in locked
    }


def _mlflow(tracked: Tracked) -> dict[str, Any]:
    return {
        "experiment": tracked.experiment,
        "run_id": tracked.run_id,
        "model_name": tracked.model_name,
        "model_version": tracked.model_version,
    }


def _times(workspace: Workspace, round_number: int) -> dict[str, Any]:
    seconds = stage_seconds(workspace, round_number)
    return {
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage_seconds": seconds,
        "total_stage_seconds": round(sum(seconds.values()), 3),
    }
