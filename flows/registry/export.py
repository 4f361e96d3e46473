"""Export a round's teacher as a folder that runs without torch, and register it in MLflow beside its model.

Order: the folder, the version in MLflow, the line in ``exports.jsonl``, the commit. A call that was killed completes
what it began when it is repeated: the folder is kept, and a version is registered once per network.
"""

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

import tasks
from flows.provenance.snapshot import RoundSnapshot, load_snapshots, resolve_model_ref
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_owner import OWNER_TAG, claim_model
from flows.tracking.mlflow_run import (
    EXPORT_KEY_TAG,
    PARENT_MODEL_TAG,
    TEACHER_SHA256,
    find_or_create_experiment,
    silence_mlflow,
    use_tracking_uri,
    without_requirement_check,
)
from flows.workspace import git
from flows.workspace.export_log import ExportRecord, append_export, read_exports
from flows.workspace.owner import require_own_folder
from flows.workspace.promotion_log import model_record
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, UNLABELED
from tasks.export.network import NETWORK_FILES
from tasks.export.package import ExportImages, ExportRequest, file_digests, write_export
from tasks.export.packages import Format, Precision
from tasks.export.prune import SECTIONS, PrunedDetector, PruneImages, prune_detector, require_prune_frac
from tasks.export.runtime import METADATA_FILE
from tasks.model.detector import load_detector
from tasks.params import StageParams, read_params_file, validate_params
from tasks.runtime.errors import UserError
from tasks.storage import files

_SECTIONS_OF_ROUND = ("classes", "model", "evaluate", "preannotation")
"""Sections that are read as they were in the exported round; the others as they are today."""


@dataclass(frozen=True)
class ExportResult:
    """A registered export."""

    record: ExportRecord
    measured: Mapping[str, Any]
    """``measured`` of the export's metadata."""
    is_new: bool
    """Whether the folder was written by this call."""


def export_model(
    workspace: Workspace,
    model_ref: str | None,
    target: Path,
    export_format: Format,
    precision: Precision,
    on_step: Callable[[str], None],
    prune_frac: float = 0.0,
) -> ExportResult:
    """Write the folder ``target`` and register it.

    Args:
        workspace: the campaign.
        model_ref: see ``resolve_model_ref``; None: the champion.
        target: the folder: a new one, or that of an earlier call with the same arguments.
        export_format: of the network.
        precision: of its numbers.
        on_step: called with a line of text before each step.
        prune_frac: fraction of channels to remove before, in [0, 0.9).

    Raises:
        ExportRefusedError: the mAP falls by more than ``export.map_tolerance_points``.
        UserError: the fraction is out of range, there is no such model, a file of the round is missing, or something
            else is at ``target``.
    """
    require_prune_frac(prune_frac)
    snapshot = load_snapshots(workspace)[resolve_model_ref(workspace, model_ref)]
    is_new = not target.exists()
    if is_new:
        _write(workspace, snapshot, target, export_format, precision, on_step, prune_frac)
    metadata = _read_metadata(target, snapshot, export_format, precision, prune_frac)
    on_step("registering in MLflow")
    record = _register(workspace, snapshot, target, metadata)
    append_export(workspace, record)
    git.commit(
        workspace, f"Export version {record.model.version} as {record.name}/{record.version}", ("exports.jsonl",)
    )
    return ExportResult(record, metadata["measured"], is_new)


def _write(
    workspace: Workspace,
    snapshot: RoundSnapshot,
    target: Path,
    export_format: Format,
    precision: Precision,
    on_step: Callable[[str], None],
    prune_frac: float,
) -> None:
    params = _params_of_round(workspace, snapshot)
    weights = snapshot.cached_path("derived/train/teacher.pth")
    metrics = json.loads(snapshot.read_blob("derived/evaluate/metrics.json"))
    request = ExportRequest(
        model=load_detector(params.model, len(params.classes), weights, "cpu"),
        params=params,
        limits=params.export,
        export_format=export_format,
        precision=precision,
        lineage=_lineage(snapshot),
        operating_points=metrics.get("protocols", {}).get("teacher", {}).get("operating_point", {}),
    )
    if prune_frac:
        request = replace(request, pruned=_prune(workspace, snapshot, request, prune_frac, on_step))
    calibration = files.read_table(snapshot.cached_path("derived/assemble/calibration.parquet"), ANNOTATED)
    images = ExportImages(workspace.root, calibration, snapshot.validation_images())
    write_export(request, images, target, on_step)


def _prune(
    workspace: Workspace,
    snapshot: RoundSnapshot,
    request: ExportRequest,
    prune_frac: float,
    on_step: Callable[[str], None],
) -> PrunedDetector:
    """Train on what the round's training had: its labels, and the pool as it was."""
    labeled, unlabeled = (
        files.read_table(snapshot.cached_path(f"derived/assemble/{name}.parquet"), schema)
        for name, schema in (("labeled", ANNOTATED), ("unlabeled", UNLABELED))
    )
    return prune_detector(
        request.model, request.params, PruneImages(workspace.root, labeled, unlabeled), prune_frac,
        model_sha256=request.lineage["teacher_sha256"], scratch=workspace.scratch("export"), on_step=on_step,
    )  # fmt: skip


def _params_of_round(workspace: Workspace, snapshot: RoundSnapshot) -> StageParams:
    """Combine the round's detector with today's limits: the round may be older than a parameter."""
    content: Any = read_params_file(workspace.params)
    of_round = files.parse_yaml(snapshot.read_blob("params.yaml"))
    sections = {name: {**content[name], **of_round[name]} for name in _SECTIONS_OF_ROUND if name != "classes"}
    merged = {**content, **sections, "classes": of_round["classes"]}
    return StageParams(validate_params(merged, workspace.params), tuple({*_SECTIONS_OF_ROUND, *SECTIONS}))


def _lineage(snapshot: RoundSnapshot) -> dict[str, Any]:
    ledger = snapshot.ledger
    return {
        "campaign": ledger["campaign"],
        "model": ledger["mlflow"]["model_name"],
        "version": snapshot.model_version,
        "tag": snapshot.tag,
        "git_revision": ledger["git_revision"],
        "teacher_sha256": ledger["teacher"]["sha256"],
        "params_sha256": ledger["params_sha256"],
    }


def _read_metadata(
    target: Path, snapshot: RoundSnapshot, export_format: Format, precision: Precision, prune_frac: float
) -> Mapping[str, Any]:
    """Read the metadata of the folder.

    Raises:
        UserError: the folder is something else, or another export.
    """
    fix = "Name another folder."
    try:
        metadata: dict[str, Any] = json.loads((target / METADATA_FILE).read_text("utf-8"))
        found = metadata["lineage"]["teacher_sha256"], metadata["format"], metadata["precision"], _prune_frac(metadata)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(target, "the place is taken, expected a free one or an earlier export", fix) from None
    expected = snapshot.ledger["teacher"]["sha256"], export_format, precision, prune_frac
    if found != expected:
        described, wanted = (
            f"{sha256[:12]} as {form}, {bits}" + (f", pruned by {fraction:g}" if fraction else "")
            for sha256, form, bits, fraction in (found, expected)
        )
        raise UserError(target, f"the folder is the export of teacher {described}, expected {wanted}", fix)
    return metadata


def _prune_frac(metadata: Mapping[str, Any]) -> float:
    pruning = metadata.get("pruning", {"fraction": 0.0})
    return float(pruning["fraction"])


def _register(workspace: Workspace, snapshot: RoundSnapshot, target: Path, metadata: Mapping[str, Any]) -> ExportRecord:
    digests = file_digests(target)
    network = {name: digests[name] for name in NETWORK_FILES[metadata["format"]]}
    key = files.sha256_json([snapshot.ledger["teacher"]["sha256"], metadata["format"], metadata["precision"], network])
    earlier = next((record for record in read_exports(workspace) if record.key == key), None)
    if earlier is not None:
        return earlier
    silence_mlflow()
    with use_tracking_uri(tracking_uri(workspace.root)):
        version = _register_version(workspace, snapshot, target, metadata, key)
    accuracy = metadata["measured"]["accuracy"]
    return ExportRecord(
        key=key,
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        author=git.committer(workspace.root),
        model=model_record(snapshot.ledger),
        format=metadata["format"],
        precision=metadata["precision"],
        sha256_by_file=digests,
        map_original=accuracy["map_original"],
        map_export=accuracy["map_export"],
        name=version.name,
        version=int(version.version),
        prune_frac=_prune_frac(metadata),
    )


def _register_version(
    workspace: Workspace, snapshot: RoundSnapshot, target: Path, metadata: Mapping[str, Any], key: str
) -> ModelVersion:
    client, owner = MlflowClient(), require_own_folder(workspace)
    experiment_id, _ = find_or_create_experiment(client, workspace, git.campaign_id(workspace.root), owner)
    parent = snapshot.ledger["mlflow"]
    name = f"{parent['model_name']}-{metadata['format']}-{metadata['precision']}"
    name += "-pruned" if _prune_frac(metadata) else ""
    existing = _find_version(client, name, key)
    if existing is not None:
        return existing
    accuracy = metadata["measured"]["accuracy"]
    tags = {
        EXPORT_KEY_TAG: key,
        PARENT_MODEL_TAG: f"{parent['model_name']}/{parent['model_version']}",
        TEACHER_SHA256: snapshot.ledger["teacher"]["sha256"],
    }
    run_name = f"{name} of {snapshot.tag}"
    with mlflow.start_run(experiment_id=experiment_id, run_name=run_name, tags={**tags, OWNER_TAG: owner.owner_id}):
        mlflow.log_metrics({f"export/{metric}": float(value) for metric, value in accuracy.items()})
        with without_requirement_check():
            logged = mlflow.pyfunc.log_model(
                name="export",
                python_model=str(Path(tasks.__file__).parent / "export" / "pyfunc_model.py"),
                artifacts={"export": str(target)},
                pip_requirements=(target / "requirements.txt").read_text("utf-8").split(),
                tags={EXPORT_KEY_TAG: key},
            )
        with redirect_stderr(io.StringIO()):  # MLflow prints its progress to stderr
            mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)
    claim_model(client, name, owner)
    version = _find_version(client, name, key)
    assert version is not None
    return version


def _find_version(client: MlflowClient, name: str, key: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{EXPORT_KEY_TAG}` = '{key}'")
    return found[0] if found else None
