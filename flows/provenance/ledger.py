"""``rounds/round-0003.json``: the record of one round. Prefect, MLflow and DVC are views on it.

Each ledger holds the digest of the one before, so a past round cannot be altered unseen.

What a ledger says about where a round came from: labels and who gave them, frozen detections, the teacher.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.annotation.batches import MANIFEST
from flows.provenance.environment import collect_environment
from flows.workspace import git
from flows.workspace.dvc import locked_stages, recorded_md5s
from flows.workspace.stage_log import stage_seconds
from flows.workspace.state import newest_round
from tasks.data.label_store import read_batch
from tasks.data.paths import STAGES, Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

LEDGER_FORMAT = 2
"""Raised when a field changes its meaning. 1 lacked labels, detections_at_selection_sha256, teacher, selection_model and environment, and
had the promotion in mlflow; it is now in promotions.jsonl. Format 1 can still be read."""
_READABLE_FORMATS = (1, LEDGER_FORMAT)


@dataclass(frozen=True)
class MlflowRef:
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
    if content.get("format") not in _READABLE_FORMATS:
        problem = f"format is {content.get('format')!r}, expected one of {list(_READABLE_FORMATS)}"
        raise UserError(path, problem, "Use the Gleaner that wrote it, or a newer one.")
    return content


def all_ledgers(workspace: Workspace) -> list[dict[str, Any]]:
    """The ledgers of all rounds, by number."""
    last = newest_round(workspace)
    return [read_ledger(workspace, number) for number in range(last + 1) if workspace.ledger(number).is_file()]


def write_ledger(workspace: Workspace, round_number: int, git_revision: str, mlflow_ref: MlflowRef) -> None:
    """Record a round; a ledger of the very same derivation and run stays as it is, with its times."""
    path = workspace.ledger(round_number)
    fingerprint = round_fingerprint(workspace)
    if path.is_file():
        old = files.read_json(path)
        if old["derivation_sha256"] == fingerprint and old["mlflow"] == _mlflow_entry(mlflow_ref):
            return
    files.write_json(
        path,
        {
            "format": LEDGER_FORMAT,
            "round": round_number,
            "tag": git.round_tag(round_number),
            "campaign": git.campaign_id(workspace.root),
            "previous_ledger_sha256": _previous_ledger_sha256(workspace, round_number),
            "git_revision": git_revision,
            **_digests(workspace, round_number),
            "labels": label_batches(workspace, round_number),
            "detections_at_selection_sha256": selection_snapshot_digests(workspace),
            "teacher": teacher_record(workspace),
            "selection_model": _selection_model(workspace, round_number),
            "derivation_sha256": fingerprint,
            "stages": _stage_entries(workspace),
            "mlflow": _mlflow_entry(mlflow_ref),
            "environment": collect_environment(workspace),
            "metrics": read_history_entry(workspace, round_number),
            "times": _times(workspace, round_number),
        },
    )


def read_history_entry(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """The round's entry in the campaign's history, as the report stage wrote it.

    Raises:
        UserError: the history has no entry of that round.
    """
    path = workspace.derived("report") / "history.json"
    entries = [entry for entry in files.read_json(path) if entry["round"] == round_number]
    if len(entries) != 1:
        problem = f"entries of round {round_number} are {len(entries)}, expected 1"
        raise UserError(path, problem, "Run: dvc repro --single-item report")
    entry: dict[str, Any] = entries[0]
    return entry


def _digests(workspace: Workspace, round_number: int) -> dict[str, Any]:
    return {
        "labels_sha256": files.sha256_file(workspace.label_batch(round_number)),
        "selection_sha256": files.sha256_file(workspace.derived("select") / "selection.parquet"),
        "manifest_sha256": files.sha256_file(workspace.derived("handoff") / MANIFEST),
        "params_sha256": files.sha256_file(workspace.params),
        "code": files.read_json(workspace.code_versions),
    }


def _previous_ledger_sha256(workspace: Workspace, round_number: int) -> str | None:
    return files.sha256_file(workspace.ledger(round_number - 1)) if round_number else None


def _selection_model(workspace: Workspace, round_number: int) -> dict[str, Any] | None:
    """The model whose claims decided which images batch ``round_number`` asked for."""
    return selection_model_record(workspace, read_ledger(workspace, round_number - 1)) if round_number else None


def _stage_entries(workspace: Workspace) -> dict[str, Any]:
    """MD5 of each stage's inputs and outputs, and of the parameter values it read."""
    locked = locked_stages(workspace)
    return {
        stage: {
            "deps": recorded_md5s(locked[stage], "deps"),
            "outs": recorded_md5s(locked[stage], "outs"),
            "params_sha256": params_sha256(locked[stage]),
        }
        for stage in STAGES
        if stage in locked
    }


def _mlflow_entry(mlflow_ref: MlflowRef) -> dict[str, Any]:
    return {
        "experiment": mlflow_ref.experiment,
        "run_id": mlflow_ref.run_id,
        "model_name": mlflow_ref.model_name,
        "model_version": mlflow_ref.model_version,
    }


def _times(workspace: Workspace, round_number: int) -> dict[str, Any]:
    seconds = stage_seconds(workspace, round_number)
    return {
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage_seconds": seconds,
        "total_stage_seconds": round(sum(seconds.values()), 3),
    }


_SNAPSHOT_FILE = re.compile(r"batch-(\d{4,})\.parquet")


def label_batches(workspace: Workspace, round_number: int) -> list[dict[str, Any]]:
    """Every batch a round learned from: its digest, and how many answers each annotator gave."""
    batches = []
    for number in range(round_number + 1):
        path = workspace.label_batch(number)
        batch = read_batch(path)
        annotators = Counter(label.annotator for label in (*batch.images, *batch.other_annotations))
        batches.append(
            {
                "batch": number,
                "sha256": files.sha256_file(path),
                "provider": batch.provider,
                "collected_at": batch.collected_at,
                "images": len(batch.images),
                "annotators": dict(sorted(annotators.items())),
            }
        )
    return batches


def selection_snapshot_digests(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of the detections frozen with each delivery whose labels have come back, by its number."""
    found = {
        match[1]: path
        for path in workspace.detections_at_selection.glob("*")
        if (match := _SNAPSHOT_FILE.fullmatch(path.name))
    }
    return {str(int(number)): files.sha256_file(found[number]) for number in sorted(found, key=int)}


def teacher_record(workspace: Workspace) -> dict[str, Any]:
    """The round's model, and the one its training started from."""
    previous_teacher = workspace.warm_start / "teacher.pth"
    init_from = load_params(workspace.params).train.init_from
    started = init_from == "previous_round" and previous_teacher.is_file()
    return {
        "sha256": files.sha256_file(workspace.derived("train") / "teacher.pth"),
        "init_from": init_from,
        "started_from_sha256": files.sha256_file(previous_teacher) if started else None,
    }


def selection_model_record(workspace: Workspace, previous_ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the round before, as its ledger has it; its file came along with the labels."""
    previous_teacher = workspace.warm_start / "teacher.pth"
    digest = (
        files.sha256_file(previous_teacher)
        if previous_teacher.is_file()
        else previous_ledger.get("teacher", {}).get("sha256")
    )
    return {
        "round": previous_ledger["round"],
        "model_version": previous_ledger["mlflow"]["model_version"],
        "sha256": digest,
    }


def params_sha256(locked: Mapping[str, Any]) -> str:
    """Digest of the parameter values a stage read, from its entry in dvc.lock."""
    return files.sha256_json(locked.get("params", {}))
